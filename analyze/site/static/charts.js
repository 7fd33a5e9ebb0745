"use strict";
// Small charts in SVG, and a canvas that is sharp on every screen.
(() => {
  const { h, s, show } = THRESHER;

  // A horizontal bar of parts [{label, value, color}], with a legend.
  THRESHER.stack = (parts, format) => {
    const total = parts.reduce((sum, part) => sum + Math.max(0, part.value || 0), 0) || 1;
    return h("div", { class: "stack", role: "img", "aria-label": parts.map(part => `${part.label} ${format(part.value)}`).join(", ") },
      parts.filter(part => part.value > 0).map(part =>
        h("i", { style: `width:${(100 * part.value / total).toFixed(2)}%;background:${part.color}`, title: `${part.label}: ${format(part.value)}` })));
  };

  // The score with its interval on the line from text to image.
  THRESHER.muBar = (mu, low, high) => h("div", { class: "mu", role: "img", "aria-label": `modality score ${show(mu, 2)}, interval ${show(low, 2)} to ${show(high, 2)}` },
    mu === null || mu === undefined ? null : [
      low === null || low === undefined ? null : h("i", { style: `left:${100 * low}%;width:${100 * (high - low)}%` }),
      h("b", { style: `left:${100 * mu}%` })]);

  // Counts by |z| of [kind, [first bin, counts]]: the first upwards, a second one downwards, each relative to its largest.
  THRESHER.histogram = (sides, bins) => {
    const all = sides.map(([, found]) => found).filter(one => one[1].length);
    if (!all.length) return h("p", { class: "soft" }, "It fires nowhere.");
    const first = Math.min(...all.map(one => one[0])), last = Math.max(...all.map(one => one[0] + one[1].length));
    const width = THRESHER.fit(440), half = sides.length > 1 ? 70 : 120, high = sides.length > 1 ? 2 * half + 54 : half + 52, top = 16, left = 18, step = (width - 2 * left) / Math.max(last - first, 6);
    const value = bin => 2 ** (bins.lowest + bin / bins.per_octave);
    const bars = (one, up, kind) => {
      const most = Math.max(1, ...one[1]);
      return one[1].map((count, k) => {
        const tall = half * count / most, bin = one[0] + k;
        return s("rect", { x: left + (bin - first) * step + 0.5, y: up ? top + half - tall : top + half + 18, width: Math.max(1, step - 1), height: tall, class: `fill-${kind}` },
          s("title", {}, `${kind}: ${count} with |z| from ${show(value(bin))} to ${show(value(bin + 1))}`));
      });
    };
    const every = Math.max(2, Math.ceil((last - first) / 6 / 2) * 2), ticks = [];
    for (let bin = first; bin <= last; bin += every) ticks.push(s("text", { x: left + (bin - first) * step, y: top + half + 13, class: "tick", "text-anchor": "middle" }, show(value(bin), 2)));
    const most = one => (one[1].length ? Math.max(...one[1]) : 0);
    const what = Object.values(THRESHER.run.rows).some(Boolean) ? "largest |z| of an item" : "|z|";
    return s("svg", { viewBox: `0 0 ${width} ${high}`, role: "img", "aria-label": `Counts by ${what}, ${sides.map(([kind], k) => `${kind}s ${k ? "below" : "above"}`).join(", ")}`, class: "chart" },
      sides.map(([kind, found], k) => [bars(found, !k, kind), s("text", { x: width - left, y: k ? high - 4 : 10, class: "tick", "text-anchor": "end" }, `${kind}s, most ${most(found)}`)]), ticks,
      s("text", { x: left, y: high - 4, class: "tick" }, `${what}, by half octaves`));
  };

  // Bars of one series per modality over steps from 0.
  THRESHER.steps = series => {
    const width = THRESHER.fit(440), height = 134, n = series[0].length, step = (width - 50) / n, most = Math.max(...series.flat()) || 1, { modalities } = THRESHER.run;
    const bars = (one, kind, shift) => one.map((value, k) => s("rect", {
      x: 40 + (k + 0.9 * shift / series.length) * step, y: 8 + (height - 44) * (1 - value / most), width: Math.max(1, step * 0.84 / series.length), height: (height - 44) * value / most, class: `fill-${kind}`,
    }, s("title", {}, `step ${k}, ${kind}: ${show(value)}`)));
    const every = Math.ceil(n / 12);
    return s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Energy by step of the pursuit", class: "chart" },
      s("text", { x: 34, y: 16, class: "tick", "text-anchor": "end" }, show(most, 2)), s("line", { x1: 40, x2: width - 8, y1: height - 36, y2: height - 36, class: "axis" }), s("text", { x: (width + 40) / 2, y: height - 5, class: "tick", "text-anchor": "middle" }, "step, the first is 0"),
      series.map((one, k) => bars(one, modalities[k], k)),
      series[0].map((_, k) => (k % every ? null : s("text", { x: 40 + (k + 0.45) * step, y: height - 22, class: "tick", "text-anchor": "middle" }, String(k)))));
  };

  // A canvas as wide as its box and as high as its style says; `draw(context, width, height)` is called now, after a resize and with another theme.
  THRESHER.canvas = (height, label, draw) => {
    const node = h("canvas", { tabindex: "0", role: "img", "aria-label": label, style: `height:${height}px` });
    const paint = () => {
      const wide = node.clientWidth, height = node.clientHeight, ratio = devicePixelRatio || 1;
      if (!wide) return;
      if (node.width !== Math.round(wide * ratio) || node.height !== Math.round(height * ratio)) { node.width = Math.round(wide * ratio); node.height = Math.round(height * ratio); }
      const context = node.getContext("2d");
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, wide, height);
      draw(context, wide, height);
    };
    new ResizeObserver(paint).observe(node);
    document.addEventListener("themechange", () => node.isConnected && paint());
    return { node, paint };
  };
  THRESHER.color = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
})();
