"""The review page: who talks to whom, is it all encrypted, what was refused, what changed?

Read-only. Rendered here, so that it works without scripts; what a script adds (the graph, keys) is on
top. Every value that a span carries was written by others: templates escape all, and no value ever
becomes part of a script, a style or an address.

- `session`: who may look. `headers`: what a browser may do with an answer. Pure.
- `asked`: what a URL asks for. `questions`: the answer of each view. `decisions`, `replay`: what to
  decide; what a policy would have cut. Pure but for `questions`, which reads the store.
- `graph`, `layout`: the graph as data. Pure.
- `render`, `export`: HTML; CSV and JSON.
- `pages`: the HTTP of it.
"""
