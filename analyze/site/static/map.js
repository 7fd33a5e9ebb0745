"use strict";
// Atoms in the plane.
(() => {
  const { h, show, link } = THRESHER;
  const HEIGHT = 640;
  const TITLES = { pca_atoms: "principal components", pca_without_gap: "principal components, gap direction taken out", umap_atoms: "UMAP", umap_without_gap: "UMAP, gap direction taken out" };

  THRESHER.views.map = async (main, { sae, query }) => {
    const table = await THRESHER.table(sae), data = await THRESHER.load(`${sae}/map`);
    const names = Object.keys(TITLES).filter(name => name in data.layouts), n = data.features.length;
    const state = { layout: names.includes(query.get("layout")) ? query.get("layout") : names[0], by: query.get("by") || "class" };
    let zoom = 1, shiftX = 0, shiftY = 0, hot = null, drag = null, box = null, points = [];

    const largest = Math.max(...data.features.map(feature => table.get("energy_image", feature) + table.get("energy_text", feature)), 1e-12);
    const part = feature => Math.sqrt((table.get("energy_image", feature) + table.get("energy_text", feature)) / largest);
    let colors = [];
    const color = () => {
      const byClass = Object.fromEntries(THRESHER.CLASSES.map(kind => [kind, THRESHER.classColor(kind)]));
      const ramp = value => `hsl(${265 - 215 * value} 70% ${THRESHER.isDark() ? 40 + 30 * value : 60 - 25 * value}%)`;
      colors = data.features.map(feature => (state.by === "class" ? byClass[table.get("class", feature)] : state.by === "mu" ? THRESHER.muColor(table.get("mu_energy", feature), table.get("class", feature)) : ramp(part(feature))));
    };
    const scale = (width) => {
      const { x, y } = data.layouts[state.layout], pad = 24;
      const [lowX, highX, lowY, highY] = [Math.min(...x), Math.max(...x), Math.min(...y), Math.max(...y)];
      const unit = Math.min((width - 2 * pad) / (highX - lowX || 1), (HEIGHT - 2 * pad) / (highY - lowY || 1));
      const cx = (lowX + highX) / 2, cy = (lowY + highY) / 2;
      return k => [width / 2 + (x[k] - cx) * unit * zoom + shiftX, HEIGHT / 2 - (y[k] - cy) * unit * zoom + shiftY];
    };
    const draw = (context, width) => {
      const at = scale(width), base = n > 4000 ? 1.6 : n > 800 ? 2.6 : 3.6;
      color();
      points = data.features.map((_, k) => at(k));
      context.globalAlpha = 0.85;
      points.forEach(([x, y], k) => {
        if (x < -9 || y < -9 || x > width + 9 || y > HEIGHT + 9) return;
        context.fillStyle = colors[k];
        context.beginPath(); context.arc(x, y, base + 5 * part(data.features[k]), 0, 2 * Math.PI); context.fill();
      });
      context.globalAlpha = 1;
      if (hot !== null) { context.strokeStyle = THRESHER.color("--ink"); context.lineWidth = 2; context.beginPath(); context.arc(...points[hot], base + 5 * part(data.features[hot]) + 3, 0, 2 * Math.PI); context.stroke(); }
      if (box) { context.strokeStyle = THRESHER.color("--link"); context.setLineDash([4, 3]); context.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]); context.setLineDash([]); }
    };
    const { node: canvas, paint } = THRESHER.canvas(HEIGHT, `Map of ${n} alive atoms; the table lists the same features`, draw);
    const where = event => { const edge = canvas.getBoundingClientRect(); return [event.clientX - edge.left, event.clientY - edge.top]; };
    const nearest = event => {
      const [x, y] = where(event);
      let best = null, least = 100;
      points.forEach(([px, py], k) => { const far = (px - x) ** 2 + (py - y) ** 2; if (far < least) { least = far; best = k; } });
      return best;
    };
    canvas.addEventListener("mousemove", event => {
      if (drag) {
        const [x, y] = where(event);
        drag.moved = drag.moved || Math.hypot(x - drag.x, y - drag.y) > 4;
        if (drag.select) box = [drag.x, drag.y, x, y]; else { shiftX = drag.shiftX + x - drag.x; shiftY = drag.shiftY + y - drag.y; }
        return paint();
      }
      const found = nearest(event);
      if (found !== hot) { hot = found; paint(); }
      if (found === null) return THRESHER.tip(null);
      const feature = data.features[found];
      THRESHER.tip(event, h("b", {}, `#${feature} ${table.label(feature)}`), h("br"), `${table.get("class", feature)}, score ${show(table.get("mu_energy", feature), 2)}`);
    });
    canvas.addEventListener("mousedown", event => { const [x, y] = where(event); drag = { x, y, shiftX, shiftY, select: event.shiftKey, moved: false }; event.preventDefault(); canvas.focus(); });
    canvas.addEventListener("mouseup", event => {
      const done = drag, chosen = box;
      drag = box = null;
      if (!done) return;
      if (!done.moved) { const found = nearest(event); if (found !== null) location.hash = link("feature", sae, data.features[found]); return; }
      if (!chosen) return;
      const [left, right] = [chosen[0], chosen[2]].sort((a, b) => a - b), [top, bottom] = [chosen[1], chosen[3]].sort((a, b) => a - b);
      const inside = data.features.filter((_, k) => points[k][0] >= left && points[k][0] <= right && points[k][1] >= top && points[k][1] <= bottom);
      if (inside.length) location.hash = link("features", sae, null, { only: inside.join(".") }); else paint();
    });
    canvas.addEventListener("mouseleave", () => { hot = drag = box = null; THRESHER.tip(null); paint(); });
    const zoomBy = (factor, x, y) => { zoom *= factor; shiftX = x + (shiftX - x) * factor; shiftY = y + (shiftY - y) * factor; paint(); };
    canvas.addEventListener("wheel", event => {
      event.preventDefault();
      const [x, y] = where(event), width = canvas.clientWidth;
      zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2, x - width / 2, y - HEIGHT / 2);
    }, { passive: false });
    canvas.addEventListener("keydown", event => {
      const moves = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
      if (event.key in moves) { shiftX += moves[event.key][0]; shiftY += moves[event.key][1]; paint(); }
      else if (event.key === "+" || event.key === "=") zoomBy(1.25, 0, 0);
      else if (event.key === "-") zoomBy(0.8, 0, 0);
      else if (event.key === "0") reset();
      else return;
      event.preventDefault();
    });
    const reset = () => { zoom = 1; shiftX = shiftY = 0; paint(); };
    const legend = h("p", { class: "legend" }), about = h("span", { class: "soft small", id: "map-status", role: "status" });
    const update = () => {
      const { shares } = data.layouts[state.layout];
      about.textContent = `${n} alive atoms` + (shares[0] === null ? "" : `; the axes hold ${THRESHER.percent(shares[0])} and ${THRESHER.percent(shares[1])} of the variance`);
      legend.replaceChildren(...(state.by === "class" ? THRESHER.CLASSES.filter(kind => kind !== "dead").map(THRESHER.chip) : state.by === "mu" ? [THRESHER.muScale()] : ["energy: small ", h("i", { class: "energy-scale" }), " large"]));
      THRESHER.setHash(link("map", sae, null, { layout: state.layout, by: state.by }));
      paint();
    };
    main.append(
      h("h1", {}, "Map of the dictionary", h("small", {}, ` ${sae}`)),
      h("div", { class: "bar" },
        THRESHER.field("Layout", THRESHER.select(names.map(name => [name, TITLES[name]]), state.layout, value => { state.layout = value; reset(); update(); })),
        THRESHER.field("Colour", THRESHER.select([["class", "class"], ["mu", "modality score"], ["energy", "energy"]], state.by, value => { state.by = value; update(); })),
        h("button", { type: "button", onclick: reset }, "Whole map"), about),
      legend, h("div", { class: "card canvas" }, canvas),
      h("p", { class: "soft small" }, "Click: open the feature. Drag: move. Wheel, + and -: zoom. Shift and drag: list what is inside in the table. With the gap's direction in, islands may only restate the gap."));
    update();
  };
})();
