"use strict";
// Images that a caption finds by its codes alone.
(() => {
  const { h, show, link } = THRESHER;

  const results = (sae, table, caption, images) => h("ol", { class: "found", "aria-label": "Images found" }, caption.found.map((one, k) => h("li", { class: one.own ? "own" : null },
    h("div", { class: "shot" }, THRESHER.picture(images.get(one.image), `place ${k + 1}`)),
    h("div", {}, h("b", {}, `${k + 1}. `), `score ${show(one.score, 2)}`, one.own ? h("span", { class: "yes" }, " \u2713 its own image") : "",
      h("ul", {}, one.matches.map(([feature, z, w, term]) => h("li", { title: `z ${show(z, 2)} on the image, ${show(w, 2)} on the caption` }, THRESHER.featureLink(sae, table, feature), ` ${show(term, 2)}`)))))));

  THRESHER.views.find = async (main, { sae, id, query }) => {
    const table = await THRESHER.table(sae), data = await THRESHER.load(`${sae}/find`), n = data.captions.length;
    const place = Math.max(0, Math.min(n - 1, Number(id) || 0)), caption = data.captions[place];
    const [texts, images] = await Promise.all([THRESHER.texts(data.captions.map(one => one.text)), THRESHER.images(caption.found.map(one => one.image))]);
    const list = h("ol", { class: "captions pick-caption tall", "aria-label": "Captions" }), state = { q: query.get("q") || "" };
    const update = () => {
      const asked = state.q.toLowerCase(), fits = data.captions.map((_, k) => k).filter(k => texts.get(data.captions[k].text).toLowerCase().includes(asked));
      list.replaceChildren(...fits.map(k => h("li", { class: k === place ? "current" : null }, h("a", { href: link("find", sae, k, { q: state.q }), "aria-current": k === place ? "true" : null }, texts.get(data.captions[k].text)), h("small", { title: data.captions[k].rank === null ? "its own image is not found" : "rank of its own image" }, show(data.captions[k].rank)))));
      if (!fits.length) list.append(h("li", { class: "soft" }, "No caption has these letters."));
    };
    const search = h("input", { type: "search", id: "search", value: state.q, placeholder: "letters of a caption", "aria-label": "Search captions", autocomplete: "off", oninput: event => { state.q = event.target.value; update(); } });
    main.append(
      h("h1", {}, "What a caption finds", h("small", {}, ` ${sae}`)),
      h("p", { class: "soft" }, `Images of the largest sum over features of z z', the codes of image and caption, among ${show(data.n_images)}. The number beside a caption is the rank of its own image, - where it is not found. ${n} captions, drawn at random.`),
      THRESHER.keysOnly(["image", "text"]),
      h("div", { class: "two" }, h("section", { class: "card" }, h("div", { class: "bar" }, search), list),
        h("section", { class: "card" }, h("h2", {}, texts.get(caption.text), h("small", { id: "rank" }, caption.rank === null ? " its own image is not found: no feature fires alike on both" : ` rank of its own image: ${show(caption.rank)}`)), caption.found.length ? results(sae, table, caption, images) : h("p", { class: "soft" }, "No image shares a feature with it."))));
    update();
    return key => {
      const to = { j: place + 1, ArrowRight: place + 1, k: place - 1, ArrowLeft: place - 1 }[key];
      if (to === undefined || to < 0 || to >= n) return false;
      location.hash = link("find", sae, to, { q: state.q });
      return true;
    };
  };
})();
