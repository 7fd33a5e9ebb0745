"use strict";
// What makes an image and its caption alike, term by term.
(() => {
  const { h, s, show, link } = THRESHER;

  const waterfall = (terms, rest, total) => {
    const shown = terms.slice(0, 12), width = THRESHER.fit(460), row = 20, height = row * (shown.length + 2) + 10;
    const parts = [...shown.map(([i, j, , , , term]) => [i === j ? `#${i}` : `#${i} \u00d7 #${j}`, term, i === j ? "fill-self" : "fill-cross"]), ["all others", total - shown.reduce((sum, term) => sum + term[5], 0), "fill-rest"]];
    let sum = 0, low = 0, high = 0;
    const bars = parts.map(([name, value, kind]) => { const from = sum; sum += value; low = Math.min(low, sum); high = Math.max(high, sum); return [name, from, sum, kind]; });
    const x = value => 94 + (width - 150) * (value - low) / (high - low || 1);
    return s("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": "Terms adding up to the similarity" },
      [...bars, ["sum", 0, total, "fill-sum"]].map(([name, from, to, kind], k) => [
        s("text", { x: 88, y: 14 + k * row + 4, "text-anchor": "end", class: "label" }, name),
        s("rect", { x: Math.min(x(from), x(to)), y: 6 + k * row, width: Math.max(1, Math.abs(x(to) - x(from))), height: row - 6, class: kind }, s("title", {}, `${name}: ${show(to - from)}`)),
        s("text", { x: width, y: 14 + k * row + 4, "text-anchor": "end", class: "tick" }, (to > from && name !== "sum" ? "+" : "") + show(to - from, 2))]));
  };

  THRESHER.views.pairs = async (main, { sae, id, query }) => {
    const table = await THRESHER.table(sae), data = await THRESHER.load(`${sae}/pairs`);
    const place = Math.max(0, Math.min(data.images.length - 1, Number(id) || 0)), chosen = data.images[place];
    const which = Math.max(0, Math.min(chosen.captions.length - 1, Number(query.get("caption")) || 0)), pair = chosen.captions[which];
    const images = await THRESHER.images(data.images.map(one => one.image)), texts = await THRESHER.texts(chosen.captions.map(one => one.text));
    const listed = pair.terms.reduce((sum, term) => sum + term[5], 0), own = pair.terms.filter(term => term[0] === term[1]).reduce((sum, term) => sum + term[5], 0);
    const product = pair.norms[0] * pair.norms[1];
    main.append(
      h("h1", {}, "Why a pair is alike", h("small", {}, ` ${sae}`)),
      h("p", { class: "soft" }, "The inner product of the two reconstructions (without the bias) is, exactly, the sum over features i of the image and j of the caption of z_i z'_j cos_ij. Pick an image, then one of its captions."),
      h("div", { class: "strip", role: "group", "aria-label": "Images" }, data.images.map((one, k) => h("a", { href: link("pairs", sae, k), "aria-current": k === place ? "true" : null, "aria-label": `image ${k + 1}` }, THRESHER.picture(images.get(one.image))))),
      THRESHER.keysOnly(["image", "text"]),
      h("div", { class: "two" },
        h("section", { class: "card" },
          h("div", { class: "chosen" }, THRESHER.picture(images.get(chosen.image)), h("ol", { class: "captions pick-caption" }, chosen.captions.map((one, k) => h("li", { class: k === which ? "current" : null }, h("a", { href: link("pairs", sae, place, { caption: k }), "aria-current": k === which ? "true" : null }, texts.get(one.text)))))),
          h("dl", { class: "facts" },
            h("dt", {}, "Similarity of the reconstructions"), h("dd", { id: "total" }, show(pair.total)),
            h("dt", {}, `${pair.terms.length} largest of ${pair.n_terms} terms`), h("dd", { id: "listed" }, show(listed)),
            h("dt", {}, "the other terms"), h("dd", { id: "rest" }, show(pair.total - listed)),
            h("dt", {}, "of the listed, features with themselves"), h("dd", {}, show(own)),
            h("dt", {}, "Mean over all images and texts, matched or not"), h("dd", {}, show(data.chance)),
            h("dt", {}, "Cosine"), h("dd", {}, product > 0 ? show(pair.total / product, 3) : "-")),
          waterfall(pair.terms, pair.total - listed, pair.total)),
        h("section", { class: "card" }, h("h2", {}, "Terms"), h("div", { class: "scroll tall" }, h("table", { class: "data", id: "terms" },
          h("thead", {}, h("tr", {}, ["on the image", "on the caption", "z", "z'", "cos", "term"].map((text, k) => h("th", { scope: "col", class: k < 2 ? "left" : null }, THRESHER.term(text))))),
          h("tbody", {}, pair.terms.map(([i, j, z, w, cos, term]) => h("tr", { class: i === j ? "self" : null }, h("td", { class: "left" }, THRESHER.featureLink(sae, table, i)), h("td", { class: "left" }, i === j ? h("span", { class: "soft" }, "itself") : THRESHER.featureLink(sae, table, j)), h("td", {}, show(z, 2)), h("td", {}, show(w, 2)), h("td", {}, show(cos, 2)), h("td", {}, show(term, 3))))))))));
    return key => {
      const to = { j: place + 1, ArrowRight: place + 1, k: place - 1, ArrowLeft: place - 1 }[key];
      if (to === undefined || to < 0 || to >= data.images.length) return false;
      location.hash = link("pairs", sae, to);
      return true;
    };
  };
})();
