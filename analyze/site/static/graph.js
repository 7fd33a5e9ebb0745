"use strict";
// Features that fire on the two ends of the same pairs, as a graph.
(() => {
  const { h, show, link, CLASSES } = THRESHER;
  const HEIGHT = 620, ROOM = 15;

  const choose = (edges, table, state) => {
    const { columns } = edges, kinds = edges.class, n = columns.i.length, kept = [];
    const measure = columns[state.by], near = state.ego === null ? null : reach(columns, state.ego);
    for (let k = 0; k < n; k++) {
      if (columns.i[k] === columns.j[k]) continue;
      if (columns.count[k] < state.count || (columns.q[k] !== null && columns.q[k] > state.q)) continue;
      if (near && !(near.has(columns.i[k]) && near.has(columns.j[k]))) continue;
      if (state.kind && kinds.levels[kinds.codes[k]] !== state.kind) continue;
      if (state.class && table.kind(columns.i[k]) !== state.class && table.kind(columns.j[k]) !== state.class) continue;
      kept.push(k);
    }
    kept.sort((a, b) => Math.abs(measure[b]) - Math.abs(measure[a]) || a - b);
    return { shown: kept.slice(0, state.most), n: kept.length };
  };
  // The feature, its partners, and theirs among themselves.
  const reach = ({ i, j }, ego) => {
    const found = new Set([ego]);
    for (let k = 0; k < i.length; k++) { if (i[k] === ego) found.add(j[k]); if (j[k] === ego) found.add(i[k]); }
    return found;
  };

  // Positions in 0..1. Two columns: images left, texts right, each ordered by the mean place of its partners.
  const columnsLayout = (edges, chosen) => {
    const left = [...new Set(chosen.map(k => edges.i[k]))], right = [...new Set(chosen.map(k => edges.j[k]))];
    const nodes = [...left.map(feature => ({ feature, side: 0 })), ...right.map(feature => ({ feature, side: 1 }))];
    const at = new Map(nodes.map((node, k) => [`${node.side}:${node.feature}`, k]));
    const links = chosen.map(k => [at.get("0:" + edges.i[k]), at.get("1:" + edges.j[k]), k]);
    const settle = side => {
      const own = nodes.map((node, k) => [node, k]).filter(([node]) => node.side === side);
      own.sort((a, b) => (a[0].wish ?? a[1]) - (b[0].wish ?? b[1]) || a[1] - b[1]);
      own.forEach(([node], place) => { node.x = side ? 0.72 : 0.28; node.y = (place + 0.5) / own.length; });
    };
    settle(0); settle(1);
    for (let round = 0; round < 12; round++) {
      const side = 1 - round % 2, sum = new Map();
      for (const [a, b] of links) {
        const [own, other] = side ? [b, a] : [a, b], got = sum.get(own) || [0, 0];
        sum.set(own, [got[0] + nodes[other].y, got[1] + 1]);
      }
      for (const [k, [total, n]] of sum) nodes[k].wish = total / n;
      settle(side);
    }
    return { nodes, links };
  };

  // Springs along edges, repulsion between all; starts on a spiral, so that equal data give equal pictures.
  const forceLayout = (edges, chosen) => {
    const features = [...new Set(chosen.flatMap(k => [edges.i[k], edges.j[k]]))].sort((a, b) => a - b), n = features.length;
    const at = new Map(features.map((feature, k) => [feature, k])), links = chosen.map(k => [at.get(edges.i[k]), at.get(edges.j[k]), k]);
    const x = new Float64Array(n), y = new Float64Array(n), dx = new Float64Array(n), dy = new Float64Array(n);
    for (let k = 0; k < n; k++) { const r = Math.sqrt((k + 0.5) / n), a = 2.399963 * k; x[k] = r * Math.cos(a); y[k] = r * Math.sin(a); }
    const ideal = 1.3 / Math.sqrt(Math.max(n, 1)), rounds = n > 500 ? 60 : 160;
    for (let round = 0; round < rounds; round++) {
      dx.fill(0); dy.fill(0);
      for (let a = 0; a < n; a++) for (let b = a + 1; b < n; b++) {
        const ux = x[a] - x[b], uy = y[a] - y[b], push = ideal * ideal / (ux * ux + uy * uy + 1e-6);
        dx[a] += ux * push; dy[a] += uy * push; dx[b] -= ux * push; dy[b] -= uy * push;
      }
      for (const [a, b] of links) {
        const ux = x[a] - x[b], uy = y[a] - y[b], pull = Math.hypot(ux, uy) / ideal;
        dx[a] -= ux * pull; dy[a] -= uy * pull; dx[b] += ux * pull; dy[b] += uy * pull;
      }
      const heat = 0.12 * (1 - round / rounds) + 0.002;
      for (let k = 0; k < n; k++) {
        dx[k] -= x[k] * 0.6; dy[k] -= y[k] * 0.6;
        const size = Math.hypot(dx[k], dy[k]) || 1, move = Math.min(size, heat);
        x[k] += dx[k] / size * move; y[k] += dy[k] / size * move;
      }
    }
    const span = list => { const low = Math.min(...list), high = Math.max(...list); return value => (high > low ? (value - low) / (high - low) : 0.5); };
    const fx = span(x), fy = span(y);
    return { nodes: features.map((feature, k) => ({ feature, side: -1, x: 0.05 + 0.9 * fx(x[k]), y: 0.04 + 0.92 * fy(y[k]) })), links };
  };

  THRESHER.views.bridge = async (main, { sae, query }) => {
    const table = await THRESHER.table(sae), edges = await THRESHER.load(`${sae}/edges`), { columns } = edges;
    const asked = query.get("ego"), state = {
      layout: asked === null ? "columns" : "force", by: query.get("by") === "rho" ? "rho" : "Bc", q: Number(query.get("q") ?? (asked === null ? 0.05 : 1)), count: Number(query.get("count") ?? (asked === null ? 5 : 1)),
      most: Number(query.get("most") || 150), class: query.get("class") || "", kind: "", ego: asked === null ? null : Number(asked),
    };
    let graph = { nodes: [], links: [] }, hot = null;
    let largest = 1e-12;
    for (let row = 0; row < table.n; row++) largest = Math.max(largest, table.energy(row));
    const radius = feature => 3 + (state.layout === "columns" ? 5 : 11) * Math.sqrt(table.energy(feature) / largest);
    const place = (node, width) => [node.x * width, 14 + node.y * (canvas.clientHeight - 28)];
    const draw = (context, width, height) => {
      const measure = columns[state.by], strongest = Math.max(...graph.links.map(([, , k]) => Math.abs(measure[k])), 1e-12);
      for (const [a, b, k] of graph.links) {
        const [ax, ay] = place(graph.nodes[a], width), [bx, by] = place(graph.nodes[b], width), near = hot !== null && (a === hot || b === hot);
        context.strokeStyle = THRESHER.color(near ? "--link" : columns.cos[k] > 0.5 ? "--collinear" : "--apart");
        context.globalAlpha = hot === null ? 0.55 : near ? 1 : 0.12;
        context.lineWidth = 0.5 + 4 * Math.abs(measure[k]) / strongest;
        context.setLineDash(columns.cos[k] > 0.5 ? [] : [4, 3]);
        context.beginPath(); context.moveTo(ax, ay);
        if (state.layout === "columns") context.bezierCurveTo((ax + bx) / 2, ay, (ax + bx) / 2, by, bx, by); else context.lineTo(bx, by);
        context.stroke();
      }
      context.globalAlpha = 1;
      context.setLineDash([]);
      const named = graph.nodes.length <= (state.layout === "columns" ? Infinity : 80);
      context.font = "11px system-ui, sans-serif"; context.textBaseline = "middle";
      graph.nodes.forEach((node, k) => {
        const [x, y] = place(node, width), r = radius(node.feature);
        context.beginPath(); context.arc(x, y, r, 0, 2 * Math.PI);
        context.fillStyle = table.color(node.feature); context.fill();
        context.lineWidth = k === hot || node.feature === state.ego ? 2.5 : 1; context.strokeStyle = THRESHER.color(k === hot || node.feature === state.ego ? "--ink" : "--edge"); context.stroke();
        if (!named && k !== hot) return;
        context.fillStyle = THRESHER.color("--ink"); context.textAlign = node.side === 0 ? "right" : "left";
        const room = node.side < 0 ? 150 : (node.side ? width - x : x) - r - 8;
        context.fillText(THRESHER.cut(`#${node.feature} ${table.label(node.feature)}`, room, one => context.measureText(one).width), x + (node.side === 0 ? -r - 4 : r + 4), y);
      });
      context.fillStyle = THRESHER.color("--soft"); context.textAlign = "center";
      if (!graph.nodes.length) context.fillText("No edge passes these filters.", width / 2, height / 2);
    };
    const { node: canvas, paint } = THRESHER.canvas(HEIGHT, "Graph of features; the table below lists its edges", draw);
    const pick = event => {
      const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
      let best = null, least = 14;
      graph.nodes.forEach((node, k) => { const [nx, ny] = place(node, box.width), far = Math.hypot(nx - x, ny - y) - radius(node.feature); if (far < least) { least = far; best = k; } });
      return best;
    };
    canvas.addEventListener("mousemove", event => {
      const found = pick(event);
      if (found !== hot) { hot = found; paint(); }
      if (found === null) return THRESHER.tip(null);
      const { feature } = graph.nodes[found];
      canvas.style.cursor = "pointer";
      THRESHER.tip(event, h("b", {}, `#${feature} ${table.label(feature)}`), h("br"), table.about(feature));
    });
    canvas.addEventListener("mouseleave", () => { hot = null; canvas.style.cursor = ""; THRESHER.tip(null); paint(); });
    canvas.addEventListener("click", event => { const found = pick(event); if (found !== null) location.hash = link("feature", sae, graph.nodes[found].feature); });

    const status = h("p", { class: "soft small", id: "graph-status", role: "status" }), list = h("tbody", {});
    const update = () => {
      const { shown, n } = choose(edges, table, state);
      graph = (state.layout === "columns" ? columnsLayout : forceLayout)(columns, shown);
      hot = null;
      canvas.style.height = (state.layout === "columns" ? Math.max(200, ...[0, 1].map(side => ROOM * graph.nodes.filter(node => node.side === side).length)) + 28 : HEIGHT) + "px";
      status.textContent = `${shown.length} of ${show(n)} edges between different features that pass; ${new Set(graph.nodes.map(node => node.feature)).size} features.` + (edges.n > columns.i.length ? ` Drawn from the ${columns.i.length.toLocaleString("en-US")} of ${edges.n.toLocaleString("en-US")} edges of the largest |Bc|; a feature's page has all.` : "");
      list.replaceChildren(...shown.slice(0, 100).map(k => h("tr", {}, h("td", { class: "left" }, THRESHER.featureLink(sae, table, columns.i[k])), h("td", { class: "left" }, THRESHER.featureLink(sae, table, columns.j[k])), ["rho", "cos"].map(name => h("td", {}, show(columns[name][k], 2))), h("td", {}, show(columns.Bc[k], 4)), h("td", {}, show(columns.count[k])), h("td", {}, show(columns.q[k])), h("td", { class: "left" }, edges.class.levels[edges.class.codes[k]]))));
      paint();
    };
    const set = key => value => { state[key] = value; update(); };
    const numeric = (key, label, attributes) => THRESHER.field(label, h("input", { type: "number", value: state[key], ...attributes, onchange: event => { if (event.target.value !== "") set(key)(Number(event.target.value)); } }));
    main.append(
      h("h1", {}, "Bridges", h("small", {}, ` of ${sae}`)),
      h("p", { class: "soft" }, "An edge joins a feature on images with another one that fires on the texts of the same pairs. Full lines: their atoms point the same way (cosine above 0.5); dashed: they do not. Size: energy. ", THRESHER.muScale()),
      h("div", { class: "bar" },
        THRESHER.field("Layout", THRESHER.select([["columns", "images | texts"], ["force", "force"]], state.layout, set("layout"))),
        THRESHER.field("Strength", THRESHER.select([["Bc", "Bc, share of the margin"], ["rho", "rho"]], state.by, set("by"))),
        THRESHER.field("Class", THRESHER.select([["", "all"], ...CLASSES.map(kind => [kind, kind])], state.class, set("class"))),
        THRESHER.field("Edges", THRESHER.select([["", "all"], ...edges.class.levels.filter(kind => kind !== "self").map(kind => [kind, kind])], state.kind, set("kind"))),
        numeric("q", "q at most", { min: 0, max: 1, step: "any" }), numeric("count", "pairs at least", { min: 0, step: 1 }), numeric("most", "edges shown", { min: 1, max: 2000, step: 1 }),
        state.ego === null ? "" : h("a", { class: "button", href: link("bridge", sae) }, `Leave #${state.ego}`)),
      status, h("div", { class: "card canvas" }, canvas),
      h("details", {}, h("summary", {}, "Edges shown, strongest first"), h("div", { class: "scroll" }, h("table", { class: "data" }, h("thead", {}, h("tr", {}, ["on images", "on texts", "rho", "cos", "Bc", "pairs", "q", "kind"].map((text, k) => h("th", { scope: "col", class: k < 2 || k === 7 ? "left" : null }, THRESHER.term(text))))), list))));
    update();
  };
})();
