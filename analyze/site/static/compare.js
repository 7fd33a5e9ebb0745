"use strict";
// The dictionaries of the run beside each other.
(() => {
  const { h, s, show, percent, estimate, link, CLASSES } = THRESHER;
  const MEASURES = { r2: "R2", fvu: "FVU", cosine: "cosine" };
  const SHAPES = [
    (x, y) => s("circle", { cx: x, cy: y, r: 7 }), (x, y) => s("rect", { x: x - 6, y: y - 6, width: 12, height: 12 }), (x, y) => s("path", { d: `M${x} ${y - 8}L${x + 8} ${y + 6}H${x - 8}Z` }),
    (x, y) => s("path", { d: `M${x} ${y - 8}L${x + 8} ${y}L${x} ${y + 8}L${x - 8} ${y}Z` }),
  ];

  // Places of names beside their points: to the right or left, and so far up or down that none lies on another.
  const place = (names, at, [left, right, top, bottom]) => {
    const taken = at.map(([x, y]) => [x - 8, x + 8, y - 8, y + 8]), found = [];
    const covers = (box, other) => box[0] < other[1] && other[0] < box[1] && box[2] < other[3] && other[2] < box[3];
    const order = names.map((_, k) => k).sort((a, b) => at[a][1] - at[b][1] || at[a][0] - at[b][0]);
    for (const k of order) {
      const long = 6.6 * names[k].length, [px, py] = at[k];
      const shifts = Array.from({ length: 60 }, (_, n) => (n % 2 ? -1 : 1) * 7 * Math.ceil(n / 2));
      const spots = shifts.flatMap(shift => [["start", px + 12], ["end", px - 12]].map(([anchor, x]) => ({ x, y: py + 4 + shift, anchor })));
      const box = spot => (spot.anchor === "start" ? [spot.x, spot.x + long, spot.y - 10, spot.y + 3] : [spot.x - long, spot.x, spot.y - 10, spot.y + 3]);
      const free = spot => { const one = box(spot); return one[0] >= left && one[1] <= right && one[2] >= top && one[3] <= bottom && !taken.some(other => covers(one, other)); };
      found[k] = spots.find(free) || spots[0];
      taken.push(box(found[k]));
    }
    return found;
  };

  const plot = (state, choose) => {
    const names = THRESHER.run.all, width = THRESHER.fit(620), height = 380, [left, right, top, bottom] = [62, 20, 28, 46];
    const points = names.map(name => { const found = THRESHER.run.saes[name].reconstruction[state.panel]; return { name, x: found.l0.value, y: found[state.measure] }; }).filter(point => point.y && point.y.value !== null);
    const span = (values, least) => { const low = Math.min(...values), high = Math.max(...values), pad = Math.max(0.12 * (high - low), least * (Math.abs(high) || 1)); return [low - pad, high + pad]; };
    const [lowX, highX] = span(points.map(point => point.x), 0.05), [lowY, highY] = span(points.flatMap(point => [point.y.value, point.y.low ?? point.y.value, point.y.high ?? point.y.value]), 0.001);
    const x = value => left + (width - left - right) * (value - lowX) / (highX - lowX), y = value => height - bottom - (height - top - bottom) * (value - lowY) / (highY - lowY);
    // Round numbers between the ends.
    const ticks = (low, high) => {
      const rough = (high - low) / 5, ten = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 5, 10].map(one => one * ten).find(one => one >= rough);
      return Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 }, (_, k) => Number(((Math.ceil(low / step) + k) * step).toPrecision(6)));
    };
    const at = points.map(point => [x(point.x), y(point.y.value)]), labels = place(points.map(point => point.name), at, [left, width - 4, top, height - bottom]);
    return s("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart pareto", role: "group", "aria-label": `${MEASURES[state.measure]} against L0` },
      ticks(lowX, highX).map(value => [s("line", { x1: x(value), x2: x(value), y1: top, y2: height - bottom, class: "gridline" }), s("text", { x: x(value), y: height - bottom + 16, class: "tick", "text-anchor": "middle" }, String(value))]),
      ticks(lowY, highY).map(value => [s("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "gridline" }), s("text", { x: left - 6, y: y(value) + 4, class: "tick", "text-anchor": "end" }, String(value))]),
      s("text", { x: (left + width - right) / 2, y: height - 6, class: "label", "text-anchor": "middle" }, "L0: active features per row"),
      s("text", { x: 12, y: 14, class: "label" }, MEASURES[state.measure]),
      points.map((point, k) => s("g", { class: "point" + (state.chosen === point.name ? " current" : ""), tabindex: "0", role: "button", "data-sae": point.name, "aria-pressed": String(state.chosen === point.name), "aria-label": `${point.name}: L0 ${show(point.x, 1)}, ${MEASURES[state.measure]} ${show(point.y.value)}`, onclick: () => choose(point.name), onkeydown: event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(point.name); } } },
        point.y.low === null || point.y.low === undefined ? null : s("line", { x1: x(point.x), x2: x(point.x), y1: y(point.y.low), y2: y(point.y.high), class: "whisker" }),
        SHAPES[k % SHAPES.length](...at[k]),
        Math.abs(labels[k].y - at[k][1]) > 20 ? s("line", { x1: at[k][0], y1: at[k][1], x2: labels[k].x, y2: labels[k].y - 4, class: "leader" }) : null,
        s("text", { x: labels[k].x, y: labels[k].y, "text-anchor": labels[k].anchor, class: "label" }, point.name))));
  };

  const rows = names => {
    const { run } = THRESHER, groups = name => (THRESHER.isSingle ? null : run.groups[name]), told = [];
    told.push(["architecture", name => run.saes[name].architecture.kind], ["atoms", name => show(run.saes[name].d_sae)]);
    for (const panel of Object.keys(run.saes[names[0]].reconstruction)) for (const [key, title] of [["l0", "L0"], ["r2", "R2"], ["fvu", "FVU"], ["cosine", "cosine"]]) told.push([`${title} ${panel}`, name => estimate((run.saes[name].reconstruction[panel] || {})[key])]);
    if (THRESHER.isSingle) return told.concat(CLASSES.map(kind => [`features: ${kind}`, name => show(THRESHER.count(name, kind))]));
    for (const kind of CLASSES) told.push([`features: ${kind}`, name => { const found = groups(name); if (!found) return "-"; const one = found.classes[kind]; return [show(one.n), one.expected_false === undefined ? null : h("small", {}, ` (${show(one.expected_false, 1)} by chance)`)]; }]);
    told.push(["contrastive margin", name => (groups(name) ? estimate(groups(name).margin.total) : "-")]);
    for (const part of ["shared_self", "shared_cross", "bridged", "rest"]) told.push([`margin: ${part.replace("_", " ")}`, name => (groups(name) ? estimate(groups(name).margin[part], percent) : "-")]);
    for (const side of ["energy_image", "energy_text"]) told.push([`${side.replace("_", " on ")}: shared`, name => (groups(name) ? estimate(groups(name)[side].shared, percent) : "-")]);
    return told;
  };

  const meant = title => (title.startsWith("features: ") ? ["features: ", THRESHER.term(title.slice(10))] : THRESHER.term(title));

  THRESHER.views.compare = async (main, { query }) => {
    const names = THRESHER.run.all, panels = Object.keys(THRESHER.run.saes[names[0]].reconstruction);
    const state = { panel: panels.includes("pooled") ? "pooled" : panels[0], measure: "r2", chosen: query.get("sae") || "" };
    const figure = h("div", {}), cells = new Map(names.map(name => [name, []]));
    const choose = name => {
      state.chosen = state.chosen === name ? "" : name;
      THRESHER.setHash(link("compare", null, null, { sae: state.chosen }));
      const focused = document.activeElement.dataset ? document.activeElement.dataset.sae : null;
      update();
      if (focused) figure.querySelector(`[data-sae="${CSS.escape(focused)}"]`)?.focus();
    };
    const update = () => {
      figure.replaceChildren(plot(state, choose));
      for (const [name, list] of cells) for (const cell of list) cell.classList.toggle("current", name === state.chosen);
    };
    const cell = (tag, name, attributes, content) => { const node = h(tag, attributes, content); cells.get(name).push(node); return node; };
    main.append(
      h("h1", {}, "Dictionaries of this run"),
      h("div", { class: "two" },
        h("section", { class: "card" }, h("div", { class: "bar" },
          THRESHER.field("Rows", THRESHER.select(panels.map(panel => [panel, panel]), state.panel, value => { state.panel = value; update(); })),
          THRESHER.field("Measure", THRESHER.select(Object.entries(MEASURES), state.measure, value => { state.measure = value; update(); }))), figure,
          h("p", { class: "soft small" }, "Whiskers: 95 % intervals. Compare at equal L0 only. Pick a point, or a name of the table, to see it in both.")),
        h("section", { class: "card" }, h("h2", {}, THRESHER.isSingle ? "Features" : "Classes"), names.filter(name => THRESHER.run.groups[name]).map(name => cell("div", name, { class: "class-line" }, [h("a", { href: link("features", name) }, name), THRESHER.stack(CLASSES.map(kind => ({ label: kind, value: THRESHER.count(name, kind), color: `var(--class-${kind})` })), String)])), h("p", { class: "legend" }, CLASSES.map(THRESHER.chip)))),
      h("div", { class: "scroll" }, h("table", { class: "data", id: "compare" },
        h("thead", {}, h("tr", {}, h("th", { class: "left", scope: "col" }, ""), names.map(name => cell("th", name, { scope: "col" }, h("button", { type: "button", class: "plain", onclick: () => choose(name) }, name))))),
        h("tbody", {}, rows(names).map(([title, value]) => h("tr", {}, h("th", { scope: "row", class: "left" }, meant(title)), names.map(name => cell("td", name, {}, value(name)))))))));
    update();
  };
})();
