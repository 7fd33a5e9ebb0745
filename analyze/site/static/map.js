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
    const colourings = THRESHER.isSingle ? [["class", "status"], ["energy", "energy"]] : [["class", "class"], ["mu", "modality score"], ["energy", "energy"]];
    let zoom = 1, shiftX = 0, shiftY = 0, hot = null, drag = null, loop = null, lasso = false, panned = false, points = [];

    const largest = data.features.reduce((most, feature) => Math.max(most, table.energy(feature)), 1e-12), part = feature => Math.sqrt(table.energy(feature) / largest);
    let colors = [];
    const color = () => {
      const [low, high] = ["--low", "--high"].map(THRESHER.color);
      const byClass = Object.fromEntries(THRESHER.CLASSES.map(kind => [kind, THRESHER.classColor(kind)]));
      // One hue, from pale to strong: the order of lightness is seen with any colour vision.
      const ramp = value => `color-mix(in oklab, ${low}, ${high} ${5 * Math.round(20 * value)}%)`;
      colors = data.features.map(feature => (state.by === "class" ? byClass[table.kind(feature)] : state.by === "mu" ? table.color(feature) : ramp(part(feature))));
    };
    const scale = (width) => {
      const { x, y } = data.layouts[state.layout], pad = 24;
      const [lowX, highX, lowY, highY] = [Math.min(...x), Math.max(...x), Math.min(...y), Math.max(...y)];
      const unit = Math.min((width - 2 * pad) / (highX - lowX || 1), (HEIGHT - 2 * pad) / (highY - lowY || 1));
      const cx = (lowX + highX) / 2, cy = (lowY + highY) / 2;
      return k => [width / 2 + (x[k] - cx) * unit * zoom + shiftX, HEIGHT / 2 - (y[k] - cy) * unit * zoom + shiftY];
    };
    const draw = (context, width) => {
      const at = scale(width), base = n > 4000 ? 1.6 : n > 800 ? 2.6 : 3.6, swell = n > 4000 ? 2.5 : 5;
      color();
      points = data.features.map((_, k) => at(k));
      context.globalAlpha = n > 4000 ? 0.7 : 0.85;
      points.forEach(([x, y], k) => {
        if (x < -9 || y < -9 || x > width + 9 || y > HEIGHT + 9) return;
        context.fillStyle = colors[k];
        context.beginPath(); context.arc(x, y, base + swell * part(data.features[k]), 0, 2 * Math.PI); context.fill();
      });
      context.globalAlpha = 1;
      if (hot !== null) { context.strokeStyle = THRESHER.color("--ink"); context.lineWidth = 2; context.beginPath(); context.arc(...points[hot], base + swell * part(data.features[hot]) + 3, 0, 2 * Math.PI); context.stroke(); }
      if (!loop) return;
      context.strokeStyle = THRESHER.color("--link"); context.fillStyle = THRESHER.color("--link"); context.lineWidth = 1.5; context.setLineDash([4, 3]);
      context.beginPath(); loop.forEach(([x, y], k) => (k ? context.lineTo(x, y) : context.moveTo(x, y))); context.closePath(); context.stroke();
      context.globalAlpha = 0.1; context.fill(); context.globalAlpha = 1; context.setLineDash([]);
    };
    const { node: canvas, paint } = THRESHER.canvas(HEIGHT, `Map of ${n} alive atoms; the table lists the same features`, draw);
    const where = event => { const edge = canvas.getBoundingClientRect(); return [event.clientX - edge.left, event.clientY - edge.top]; };
    const nearest = event => {
      const [x, y] = where(event);
      let best = null, least = 100;
      points.forEach(([px, py], k) => { const far = (px - x) ** 2 + (py - y) ** 2; if (far < least) { least = far; best = k; } });
      return best;
    };
    const open = chosen => { if (chosen.length) location.hash = link("features", sae, null, { only: chosen.join(".") }); else paint(); };
    // A point is inside when a ray from it crosses the loop an odd number of times.
    const inside = ([x, y]) => loop.reduce((odd, [ax, ay], k) => {
      const [bx, by] = loop[(k + 1) % loop.length];
      return (ay > y) !== (by > y) && x < ax + (bx - ax) * (y - ay) / (by - ay) ? !odd : odd;
    }, false);
    canvas.addEventListener("pointermove", event => {
      const [x, y] = where(event);
      if (drag) {
        drag.moved = drag.moved || Math.hypot(x - drag.x, y - drag.y) > 4;
        if (loop) loop.push([x, y]); else { shiftX = drag.shiftX + x - drag.x; shiftY = drag.shiftY + y - drag.y; }
        return paint();
      }
      const found = nearest(event);
      if (found !== hot) { hot = found; paint(); }
      if (found === null) return THRESHER.tip(null);
      const feature = data.features[found];
      THRESHER.tip(event, h("b", {}, `#${feature} ${table.label(feature)}`), h("br"), table.about(feature));
    });
    canvas.addEventListener("pointerdown", event => {
      // A finger scrolls the page unless it draws.
      if (event.button || (event.pointerType === "touch" && !lasso)) return;
      const [x, y] = where(event);
      drag = { x, y, shiftX, shiftY, moved: false };
      if (lasso || event.shiftKey) loop = [[x, y]];
      canvas.setPointerCapture(event.pointerId);
      THRESHER.tip(null);
      event.preventDefault();
      canvas.focus();
    });
    canvas.addEventListener("pointerup", () => {
      const done = drag;
      panned = Boolean(done && done.moved);
      const chosen = loop && done && done.moved ? data.features.filter((_, k) => inside(points[k])) : null;
      drag = loop = null;
      if (chosen) open(chosen);
      else if (done && done.moved) paint();
    });
    canvas.addEventListener("click", event => {
      const found = nearest(event);
      if (found !== null && !panned) location.hash = link("feature", sae, data.features[found]);
    });
    canvas.addEventListener("pointercancel", () => { drag = loop = null; paint(); });
    canvas.addEventListener("pointerleave", () => { if (drag) return; hot = null; THRESHER.tip(null); paint(); });
    const inSight = () => data.features.filter((_, k) => points[k][0] >= 0 && points[k][0] <= canvas.clientWidth && points[k][1] >= 0 && points[k][1] <= HEIGHT);
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
      else if (event.key === "l") draws.click();
      else if (event.key === "Enter") open(inSight());
      else return;
      event.preventDefault();
    });
    const reset = () => { zoom = 1; shiftX = shiftY = 0; paint(); };
    const draws = h("button", { type: "button", id: "lasso", "aria-pressed": "false", title: "Draw around atoms to list them in the table; also with Shift", onclick: () => { lasso = !lasso; draws.setAttribute("aria-pressed", String(lasso)); canvas.classList.toggle("draws", lasso); } }, "Lasso");
    const legend = h("p", { class: "legend" }), about = h("span", { class: "soft small", id: "map-status", role: "status" });
    const update = () => {
      const { shares } = data.layouts[state.layout];
      about.textContent = `${show(n)} alive atoms` + (shares[0] === null ? "" : `; the axes hold ${THRESHER.percent(shares[0])} and ${THRESHER.percent(shares[1])} of the variance`);
      legend.replaceChildren(...(state.by === "class" ? THRESHER.CLASSES.filter(kind => kind !== "dead").map(THRESHER.chip) : state.by === "mu" ? [THRESHER.muScale()] : ["energy: small ", h("i", { class: "energy-scale" }), " large"]));
      THRESHER.setHash(link("map", sae, null, { layout: state.layout, by: state.by }));
      paint();
    };
    main.append(
      h("h1", {}, "Map of the dictionary", h("small", {}, ` ${sae}`)),
      h("div", { class: "bar" },
        THRESHER.field("Layout", THRESHER.select(names.map(name => [name, TITLES[name]]), state.layout, value => { state.layout = value; reset(); update(); })),
        THRESHER.field("Colour", THRESHER.select(colourings, state.by, value => { state.by = value; update(); })),
        h("button", { type: "button", onclick: reset }, "Whole map"), draws, h("button", { type: "button", id: "sight", onclick: () => open(inSight()) }, "List what is in sight"), about),
      legend, h("div", { class: "card canvas" }, canvas),
      h("p", { class: "soft small" }, "Click: open the feature. Drag, arrows: move. Wheel, + and -: zoom, 0: whole map. Lasso (l), or Shift and drag: draw around atoms to list them in the table. Enter: list what is in sight." + (THRESHER.isSingle ? "" : " With the gap's direction in, islands may only restate the gap.")));
    update();
  };
})();
