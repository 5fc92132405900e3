// Draws the graph that the server has laid out. The table below it says the same without this file.
// Names come from whoever sends spans: they are drawn as text on a canvas and set by textContent only.
"use strict";
(function () {
  const place = document.getElementById("graph");
  if (!place || typeof cytoscape !== "function") return;
  document.documentElement.classList.add("js");
  const said = document.getElementById("graph-said");
  const go = document.getElementById("graph-go");
  const first = said.textContent;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let cy = null;
  let marked = null;

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue("--" + name).trim();
    return Object.fromEntries(["paper", "ground", "ink", "quiet", "line", "strong", "accent", "mtls", "plaintext", "denied", "failed", "self"].map((n) => [n, of(n)]));
  }

  // A little to one side, what was denied to the other: a straight line hides behind what it passes.
  function bend(edge) {
    const a = edge.source().position(), b = edge.target().position();
    const length = Math.hypot(a.x - b.x, a.y - b.y);
    return (edge.data("state") === "denied" ? -1 : 1) * Math.min(90, length < 230 ? 14 : 0.13 * length);
  }

  function sheet() {
    const c = colours();
    const line = (state, more) => ({ selector: `edge[state="${state}"]`, style: { "line-color": c[state] || c.plaintext, "target-arrow-color": c[state] || c.plaintext, color: c[state] || c.plaintext, ...more } });
    return [
      { selector: "node", style: { shape: "round-rectangle", width: 156, height: 42, label: "data(label)", "text-valign": "center", "text-halign": "center", "text-wrap": "wrap", "text-max-width": 150, "font-size": 16, "font-family": "system-ui, DejaVu Sans, sans-serif", color: c.ink, "background-color": c.paper, "border-width": 1.5, "border-color": c.quiet } },
      { selector: "node[kind='address'], node[kind='other']", style: { shape: "cut-rectangle", "border-style": "dashed" } },
      { selector: "node[kind='pod']", style: { "border-style": "dashed" } },
      { selector: "node[kind='service']", style: { shape: "round-tag" } },
      { selector: "node[kind='namespace']", style: { shape: "round-rectangle", height: 52, "border-width": 3, "border-style": "double", "background-color": c.ground } },
      { selector: "node[kind='box']", style: { label: "data(label)", "text-valign": "top", "text-halign": "center", "text-margin-y": -6, "background-color": c.ground, "background-opacity": 0.6, "border-style": "dashed", "border-width": 1, "border-color": c.strong, color: c.quiet, "font-size": 17, padding: 26, shape: "round-rectangle" } },
      { selector: "edge", style: { width: 2.4, "curve-style": "unbundled-bezier", "control-point-weights": 0.5, "control-point-distances": bend, "target-arrow-shape": "triangle", "arrow-scale": 1.15, label: "data(label)", "font-size": 15, "font-family": "system-ui, DejaVu Sans, sans-serif", "text-background-color": c.paper, "text-background-opacity": 0.92, "text-background-padding": 2, "min-zoomed-font-size": 7, "loop-direction": "-45deg" } },
      // Pods of one identity that talk to each other: out of the node's right side and back in.
      { selector: "edge:loop", style: { "curve-style": "bezier", "control-point-step-size": 118, "loop-direction": "90deg", "loop-sweep": "-24deg" } },
      line("mtls", {}),
      line("self", { "line-style": "dotted" }),
      line("plaintext", { "line-style": "dashed", "line-dash-pattern": [7, 5] }),
      line("mixed", { "line-style": "dashed", "line-dash-pattern": [14, 4, 2, 4] }),
      line("denied", { width: 3.6, "target-arrow-shape": "tee", "font-weight": "bold" }),
      line("failed", { "line-style": "dotted", "target-arrow-shape": "vee" }),
      { selector: ".faint", style: { opacity: 0.16 } },
      { selector: "node.marked", style: { "border-width": 4, "border-color": c.accent } },
    ];
  }

  function address(node) {
    const query = new URLSearchParams(location.search);
    if (node.data("kind") === "namespace") {
      const open = (query.get("open") || "").split(",").filter(Boolean);
      query.set("open", [...open, node.data("name")].join(","));
    } else query.set(node.data("kind") === "identity" ? "identity" : "q", node.data("name"));
    return "graph?" + query.toString();
  }

  function mark(node) {
    marked = node;
    cy.elements().removeClass("faint marked");
    if (!node) { said.textContent = first; go.hidden = true; return; }
    const near = node.closedNeighborhood();
    cy.elements().not(near).not(near.parents()).addClass("faint");
    node.addClass("marked");
    const words = (edge, other) => `${other.data("name")} (${edge.data("state")}, ${edge.data("label")}, port ${edge.data("ports")})`;
    const into = node.incomers("edge").map((e) => words(e, e.source()));
    const out = node.outgoers("edge").map((e) => words(e, e.target()));
    const few = (all) => all.slice(0, 4).join("; ") + (all.length > 4 ? `; and ${all.length - 4} more` : "");
    said.textContent = `${node.data("name")}. From: ${few(into) || "nobody"}. To: ${few(out) || "nobody"}.`;
    go.href = address(node);
    go.textContent = node.data("kind") === "namespace" ? "Open namespace" : "Only its edges";
    go.hidden = false;
  }

  function next(key) {
    const ends = cy.nodes("[kind != 'box']");
    if (!marked) return mark(ends[0]);
    const from = marked.position();
    const [dx, dy] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[key];
    let best = null, least = Infinity;
    ends.forEach((node) => {
      const x = node.position("x") - from.x, y = node.position("y") - from.y;
      const along = x * dx + y * dy, across = Math.abs(x * dy) + Math.abs(y * dx);
      if (along > 1 && along + 2.5 * across < least) { least = along + 2.5 * across; best = node; }
    });
    if (best) {
      mark(best);
      const box = cy.extent(), p = best.position();
      if (p.x < box.x1 || p.x > box.x2 || p.y < box.y1 || p.y > box.y2) cy.center(best);
    }
  }

  function draw(graph) {
    cy = cytoscape({
      container: place,
      elements: [
        ...graph.boxes.map((name) => ({ data: { id: "box " + name, label: name, kind: "box" } })),
        ...graph.nodes.map((n) => ({ data: { id: n.id, label: n.label, name: n.name, kind: n.kind, parent: n.box ? "box " + n.box : undefined }, position: { x: n.x, y: n.y } })),
        ...graph.lines.map((l) => ({ data: l })),
      ],
      layout: { name: "preset", padding: 40 },
      style: sheet(),
      maxZoom: 2.5, minZoom: 0.05, boxSelectionEnabled: false, autounselectify: true,
      textureOnViewport: graph.nodes.length > 200, hideEdgesOnViewport: graph.lines.length > 800,
    });
    cy.fit(undefined, 36);
    const legible = place.clientWidth < 700 && graph.nodes.length <= 60 ? 0.5 : 0.05;
    if (cy.zoom() > 1.25 || cy.zoom() < legible) { cy.zoom(cy.zoom() > 1.25 ? 1.25 : legible); cy.center(); }
    cy.on("tap", "node[kind != 'box']", (event) => mark(event.target));
    cy.on("tap", (event) => { if (event.target === cy) mark(null); });
    cy.on("dbltap", "node[kind != 'box']", (event) => { location.href = address(event.target); });
    dark.addEventListener("change", () => cy.style(sheet()));
    const zoom = (by) => cy.zoom({ level: cy.zoom() * by, renderedPosition: { x: place.clientWidth / 2, y: place.clientHeight / 2 } });
    document.getElementById("graph-fit").addEventListener("click", () => cy.fit(undefined, 36));
    document.getElementById("graph-in").addEventListener("click", () => zoom(1.3));
    document.getElementById("graph-out").addEventListener("click", () => zoom(1 / 1.3));
    place.addEventListener("keydown", (event) => {
      if (event.key.startsWith("Arrow")) next(event.key);
      else if (event.key === "Enter" && marked) location.href = address(marked);
      else if (event.key === "Escape") mark(null);
      else if (event.key === "+") zoom(1.3);
      else if (event.key === "-") zoom(1 / 1.3);
      else if (event.key === "0") cy.fit(undefined, 36);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    place.dataset.drawn = `${graph.nodes.length} nodes, ${graph.lines.length} lines`;
    place.cy = cy;
  }

  fetch(place.dataset.src, { credentials: "same-origin", headers: { Accept: "application/json" } })
    .then((answer) => { if (!answer.ok) throw new Error(answer.status); return answer.json(); })
    .then((answer) => draw(answer.graph))
    .catch((error) => { said.textContent = `The graph could not be drawn (${error.message}); the table below says the same.`; });
})();
