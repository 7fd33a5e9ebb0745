"use strict";
// Features that fire on the other ends of a feature's pairs, and atoms that lie next to it.
(() => {
  const { h, s, show, link } = THRESHER;

  const partnerTable = (sae, table, feature, rows, title) => (rows.length ? [
    h("h3", {}, title),
    h("div", { class: "scroll" }, h("table", { class: "data" },
      h("thead", {}, h("tr", {}, ["feature", "rho", "cos", "Bc", "pairs", "q", "mutual"].map((text, k) => h("th", { scope: "col", class: k ? null : "left" }, k ? THRESHER.term(text) : text)))),
      h("tbody", {}, rows.slice(0, 8).map(([other, rho, cos, bc, count, q, mutual]) => h("tr", {},
        h("td", { class: "left" }, THRESHER.featureLink(sae, table, other), other === feature ? h("small", {}, " itself") : null), h("td", {}, show(rho, 2)), h("td", {}, show(cos, 2)), h("td", {}, show(bc, 4)), h("td", {}, show(count)), h("td", {}, show(q)), h("td", {}, mutual ? "\u2713" : ""))))))] : null);

  // The feature in the middle, its partners on texts to the right, those on images to the left.
  const ego = (sae, table, feature, [asImage, asText]) => {
    const width = THRESHER.fit(440), arm = Math.round(width * 0.32), rows = Math.max(1, Math.min(8, Math.max(asImage.length, asText.length))), height = 26 * rows + 34, middle = height / 2;
    const node = (other, x, y, anchor) => s("a", { href: link("feature", sae, other), "aria-label": `feature ${other}` },
      s("circle", { cx: x, cy: y, r: 7, fill: table.color(other), class: "node" }),
      s("text", { x: x + (anchor === "start" ? 12 : -12), y: y + 4, "text-anchor": anchor, class: "label" }, THRESHER.cut(`#${other} ${table.label(other)}`, arm - 14), s("title", {}, `#${other} ${table.label(other)}`)));
    const spoke = (list, x, anchor) => list.slice(0, 8).map(([other, rho, cos, bc], k) => {
      const y = 32 + 26 * k + (rows - Math.min(8, list.length)) * 13;
      return [s("line", { x1: width / 2, y1: middle, x2: x, y2: y, class: cos > 0.5 ? "edge" : "edge apart", "stroke-width": 0.6 + 4 * Math.max(0, rho) }, s("title", {}, `rho ${show(rho, 2)}, cos ${show(cos, 2)}, Bc ${show(bc, 4)}`)), node(other, x, y, anchor)];
    });
    return s("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart ego", role: "group", "aria-label": "Partners of the feature" },
      spoke(asText, arm, "end"), spoke(asImage, width - arm, "start"),
      s("circle", { cx: width / 2, cy: middle, r: 11, fill: table.color(feature), class: "node own" }),
      s("text", { x: 8, y: 12, class: "tick" }, "on images"), s("text", { x: width - 8, y: 12, class: "tick", "text-anchor": "end" }, "on texts"));
  };

  THRESHER.partners = (sae, table, feature, [asImage, asText]) => h("section", { class: "card" }, h("h2", {}, "Partners"),
    asImage.length + asText.length ? [ego(sae, table, feature, [asImage, asText]), h("p", {}, h("a", { href: link("bridge", sae, null, { ego: feature }) }, "In the graph"))] : h("p", { class: "soft" }, "No feature fires on the other end of its pairs more than chance would have it."),
    partnerTable(sae, table, feature, asImage, "Features that fire on the texts of its images"), partnerTable(sae, table, feature, asText, "Features that fire on the images of its texts"));

  THRESHER.nearest = (sae, table, near) => [h("h2", {}, "Nearest atoms"), h("div", { class: "scroll" }, h("table", { class: "data" },
    h("thead", {}, h("tr", {}, h("th", { class: "left", scope: "col" }, "feature"), h("th", { class: "left", scope: "col" }, THRESHER.isSingle ? "status" : "class"), h("th", { scope: "col" }, "cosine"))),
    h("tbody", {}, near.map(([other, cosine]) => h("tr", {}, h("td", { class: "left" }, THRESHER.featureLink(sae, table, other)), h("td", { class: "left" }, THRESHER.chip(table.kind(other))), h("td", {}, show(cosine, 3)))))))];
})();
