"use strict";
// Where in its items a feature is active: heat maps over the patches of images, highlighted tokens of texts.
(() => {
  const { h, show } = THRESHER;
  const STEPS = 127, BEFORE = 140, AFTER = 90;

  // Row within the item -> share of the largest, from -1 to 1; see `pack` in traces.py.
  const unpack = text => {
    const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0)), found = new Map();
    let place = -1;
    for (let k = 0; k < bytes.length; k += 2) {
      if (bytes[k] === 255) { place += 255; continue; }
      place += bytes[k] + 1;
      found.set(place, ((bytes[k + 1] << 24) >> 24) / STEPS);
    }
    return found;
  };
  const strongest = active => [...active].reduce((best, one) => (Math.abs(one[1]) > Math.abs(best[1]) ? one : best), [-1, 0])[0];
  const value = (share, largest) => `z about ${show(share * largest, 2)}`;
  const tint = share => `color-mix(in srgb, var(${share < 0 ? "--cold-word" : "--hot-word"}) ${Math.round(12 + 68 * Math.abs(share))}%, transparent)`;

  // Cells of the grid with their share: of cells that stand for several rows the strongest.
  const shareCells = ([, shape, cells], active) => {
    const found = new Map();
    for (const [row, share] of active) {
      const cell = Array.isArray(cells) ? cells[row] : row - cells;
      if (cell >= 0 && cell < shape[0] * shape[1] && Math.abs(share) > Math.abs(found.get(cell) || 0)) found.set(cell, share);
    }
    return found;
  };
  // The part of the box that the model saw of the picture, in percent: all of it, or a square out of its middle.
  const cover = (layer, width, height) => {
    const { frame } = THRESHER.run, most = Math.max(width, height), side = frame === null ? null : frame * Math.min(width, height);
    const [w, t] = [(side ?? width) / most * 100, (side ?? height) / most * 100];
    layer.style.cssText = `left:${(100 - w) / 2}%;top:${(100 - t) / 2}%;width:${w}%;height:${t}%`;
  };
  const paint = (canvas, shape, found) => {
    const context = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    const [hot, cold] = ["--hot", "--cold"].map(name => style.getPropertyValue(name).trim());
    canvas.height = shape[0]; canvas.width = shape[1];
    context.clearRect(0, 0, shape[1], shape[0]);
    for (const [cell, share] of found) {
      context.fillStyle = share < 0 ? cold : hot;
      context.globalAlpha = 0.08 + 0.82 * Math.abs(share);
      context.fillRect(cell % shape[1], Math.floor(cell / shape[1]), 1, 1);
    }
  };

  // A picture, or an empty box, with the feature's activations over the grid of its patches.
  THRESHER.heat = (picture, rows, trace, largest) => {
    const [, shape] = rows, active = unpack(trace), found = shareCells(rows, active), top = strongest(found);
    const canvas = h("canvas", { class: "heat-map" }), ring = h("i", { class: "heat-top" }), layer = h("div", { class: "heat-layer", role: "img" }, canvas, ring);
    const at = cell => `row ${Math.floor(cell / shape[1]) + 1}, column ${cell % shape[1] + 1}`;
    layer.setAttribute("aria-label", top < 0 ? "no patch is active" : `${found.size} of ${shape[0] * shape[1]} patches are active, strongest ${at(top)}, ${value(found.get(top), largest)}`);
    paint(canvas, shape, found);
    ring.hidden = top < 0;
    // A class token or a register can be stronger than all patches; a token of the text is underlined there.
    const whole = strongest(active), beside = whole >= 0 && !(rows[0] && rows[0][whole] >= 0) && !(top >= 0 && Math.abs(active.get(whole)) <= Math.abs(found.get(top)));
    ring.style.cssText = `left:${100 * (top % shape[1]) / shape[1]}%;top:${100 * Math.floor(top / shape[1]) / shape[0]}%;width:${100 / shape[1]}%;height:${100 / shape[0]}%`;
    layer.addEventListener("mousemove", event => {
      const box = layer.getBoundingClientRect(), column = Math.floor((event.clientX - box.left) / box.width * shape[1]), row = Math.floor((event.clientY - box.top) / box.height * shape[0]);
      const cell = row * shape[1] + column, share = found.get(cell);
      THRESHER.tip(event, `${at(cell)}: ${share === undefined ? "not active" : value(share, largest)}`);
    });
    layer.addEventListener("mouseleave", () => THRESHER.tip(null));
    if (picture && picture.tagName === "IMG") {
      const place = () => cover(layer, picture.naturalWidth || 1, picture.naturalHeight || 1);
      picture.addEventListener("load", place);
      if (picture.complete) place();
    } else cover(layer, shape[1], shape[0]);
    return h("div", { class: "heat" }, picture || "", layer, beside ? h("small", { class: "heat-beside", title: `Strongest on row ${whole + 1} of ${rows[0] ? "the sequence" : "the image"}, which is no patch (a class token, a register): ${value(active.get(whole), largest)}` }, "no patch") : "");
  };

  // A line break would tear the text apart.
  const say = id => (THRESHER.pieces.get(id) ?? ` [${id}]`).replaceAll("\n", "\u21b5 ");
  // Tokens around one of them, by the characters that are shown before and after it.
  const around = (ids, top) => {
    let from = Math.max(0, top), to = from + 1;
    for (let room = BEFORE; from > 0 && room > 0; from--) room -= ids[from - 1] < 0 ? 0 : say(ids[from - 1]).length;
    for (let room = AFTER; to < ids.length && room > 0; to++) room -= ids[to] < 0 ? 0 : say(ids[to]).length;
    return [from, to];
  };
  // The text around the strongest token; a button shows all of it.
  THRESHER.highlight = (rows, trace, largest) => {
    const [ids] = rows, active = unpack(trace), top = strongest(active);
    const draw = (from, to) => {
      const parts = [];
      let plain = "";
      const flush = () => { if (plain) parts.push(plain); plain = ""; };
      for (let k = from; k < to; k++) {
        if (ids[k] < 0) continue;
        const piece = say(ids[k]), share = active.get(k);
        if (share === undefined) { plain += piece; continue; }
        flush();
        parts.push(h("mark", { class: k === top ? "top" : null, style: `background:${tint(share)}`, title: `${JSON.stringify(piece)}, token ${k + 1} of ${ids.length}: ${value(share, largest)}` + (k === top ? ", the strongest" : "") }, piece));
      }
      flush();
      if (typeof parts[0] === "string") parts[0] = parts[0].trimStart();
      return parts;
    };
    const [from, to] = around(ids, top), node = h("span", { class: "tokens" });
    const more = label => h("button", { type: "button", class: "more", title: "Show the whole text", "aria-label": "Show the whole text", onclick: () => node.replaceChildren(...draw(0, ids.length)) }, label);
    node.append(...[from > 0 ? more("\u2026") : "", ...draw(from, to), to < ids.length ? more("\u2026") : ""].filter(Boolean));
    return node;
  };

  THRESHER.heatLegend = (kind, side, hasImages) => {
    const toggle = h("input", { type: "checkbox", checked: true, onchange: event => event.target.closest(".side").classList.toggle("no-heat", !event.target.checked) });
    return h("p", { class: "legend heat-legend" }, h("label", {}, toggle, " activations"), h("span", { class: "scale" }, "0 ", h("i", { class: "heat-scale" }), ` |z| ${show(side.largest, 2)}`), side.traces.some(one => [...unpack(one).values()].some(share => share < 0)) ? h("span", { class: "scale" }, h("i", { class: "cold-scale" }), " negative") : "", h("span", { class: "soft" }, [kind === "image" || hasImages ? "framed: the strongest patch" : "", kind === "image" ? "" : "underlined: the strongest token"].filter(Boolean).join("; ")));
  };
})();
