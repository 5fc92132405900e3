"""The API server stand-in: the subset of the Kubernetes API that podlink and kubectl use of it.

- `resources`: the kinds it knows; `store`: the objects, their versions and their history.
- `api`: create, update, patch, delete, with all checks, for HTTP and controllers alike.
- `admission` calls the mutating webhooks; `validation` names the field that is wrong.
- `patch`, `selectors`, `tables`, `discovery`: pure translations.
- `tokens`: service-account tokens, made and reviewed; `serving`: the throw-away certificate.
- `http`: routes, watches, and who is asking; `forward`: the service proxy.
"""
