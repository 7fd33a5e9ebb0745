"use strict";
// One feature: what it fires on, how often, and why it has its class.
(() => {
  const { h, s, show, link } = THRESHER;

  const read = async (sae, feature) => {
    const size = THRESHER.run.sizes.features, { all } = await THRESHER.load(`${sae}/table`);
    const shard = await THRESHER.load(`${sae}/features-${String(Math.floor(feature / size)).padStart(4, "0")}`);
    const found = shard[feature % size];
    return { ...found, row: Object.fromEntries(all.map((name, k) => [name, found.row[k]])) };
  };
  const numbers = side => [...side.top[0], ...side.bands.flatMap(band => band[0])];

  const strength = (code, most) => `z = ${show(code, 2)}` + (most ? `, ${show(Math.abs(code / most), 2)} of the largest` : "");
  const bandName = (band, n) => (["strongest quarter", "second quarter", "third quarter", "weakest quarter"][band] || `part ${band + 1} of ${n}`);
  const pictures = ([ids, codes], images, most) => h("div", { class: "pictures" }, ids.map((id, k) => h("figure", { class: "shot" }, THRESHER.picture(images.get(id), strength(codes[k], most)), h("figcaption", {}, show(codes[k], 2)))));
  const captions = ([ids, codes], texts, most) => h("ol", { class: "captions" }, ids.map((id, k) => h("li", { title: strength(codes[k], most) }, h("span", {}, texts.get(id)), h("small", {}, show(codes[k], 2)))));

  const items = (kind, side, known, draw) => {
    const most = side.top[1][0];
    return h("section", { class: "side", "aria-label": kind === "image" ? "Images" : "Captions" },
      h("h2", { class: kind }, kind === "image" ? "Images" : "Captions", h("small", {}, side.n ? ` fires on ${show(side.n)}${kind === "text" ? " different ones" : ""}` : " fires on none")),
      side.n ? draw(side.top, known, most) : "",
      side.bands.length ? h("details", { open: true }, h("summary", {}, "Samples from strong to weak"), h("div", {}, side.bands.map((band, k) => [h("h3", {}, bandName(k, side.bands.length)), draw(band, known, most)]))) : "");
  };

  const partnerTable = (sae, table, rows, title) => (rows.length ? [
    h("h3", {}, title),
    h("div", { class: "scroll" }, h("table", { class: "data" },
      h("thead", {}, h("tr", {}, ["feature", "rho", "cos", "Bc", "pairs", "q", "mutual"].map((text, k) => h("th", { scope: "col", class: k ? null : "left" }, text)))),
      h("tbody", {}, rows.slice(0, 8).map(([other, rho, cos, bc, count, q, mutual]) => h("tr", {},
        h("td", { class: "left" }, THRESHER.featureLink(sae, table, other)), h("td", {}, show(rho, 2)), h("td", {}, show(cos, 2)), h("td", {}, show(bc, 4)), h("td", {}, show(count)), h("td", {}, show(q)), h("td", {}, mutual ? "\u2713" : ""))))))] : null);

  // The feature in the middle, its partners on texts to the right, those on images to the left.
  const ego = (sae, table, feature, [asImage, asText]) => {
    const width = 440, rows = Math.max(1, Math.min(8, Math.max(asImage.length, asText.length))), height = 26 * rows + 24, middle = height / 2;
    const node = (other, x, y, anchor) => s("a", { href: link("feature", sae, other), "aria-label": `feature ${other}` },
      s("circle", { cx: x, cy: y, r: 7, fill: THRESHER.muColor(table.get("mu_energy", other), table.get("class", other)), class: "node" }),
      s("text", { x: x + (anchor === "start" ? 12 : -12), y: y + 4, "text-anchor": anchor, class: "label" }, `#${other} ${table.label(other)}`.slice(0, 20)));
    const spoke = (list, x, anchor) => list.slice(0, 8).map(([other, rho, cos, bc], k) => {
      const y = 20 + 26 * k + (rows - Math.min(8, list.length)) * 13;
      return [s("line", { x1: width / 2, y1: middle, x2: x, y2: y, class: cos > 0.5 ? "edge" : "edge apart", "stroke-width": 0.6 + 4 * Math.max(0, rho) }, s("title", {}, `rho ${show(rho, 2)}, cos ${show(cos, 2)}, Bc ${show(bc, 4)}`)), node(other, x, y, anchor)];
    });
    return s("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart ego", role: "group", "aria-label": "Partners of the feature" },
      spoke(asText, 140, "end"), spoke(asImage, width - 140, "start"),
      s("circle", { cx: width / 2, cy: middle, r: 11, fill: THRESHER.muColor(table.get("mu_energy", feature), table.get("class", feature)), class: "node own" }),
      s("text", { x: 8, y: 12, class: "tick" }, "on images"), s("text", { x: width - 8, y: 12, class: "tick", "text-anchor": "end" }, "on texts"));
  };

  const walk = (sae, feature) => {
    const { ids } = THRESHER.order.sae === sae ? THRESHER.order : { ids: [] }, place = ids.indexOf(feature);
    if (place < 0) return { before: feature - 1, after: feature + 1, where: "" };
    return { before: place > 0 ? ids[place - 1] : -1, after: place + 1 < ids.length ? ids[place + 1] : -1, where: `${place + 1} of ${ids.length} in the table` };
  };

  const facts = row => {
    const names = [["image", row.name_image], ["text", row.name_text]].filter(([, name]) => name);
    const told = [
      ...names.map(([kind, name]) => [`Name by ${kind}s`, name]),
      row.concept ? ["Concept (ground truth)", `${row.concept}, ${row.concept_visibility}; phi ${show(row.phi_image, 2)} on images, ${show(row.phi_text, 2)} on texts`] : null,
      row.class_expected ? ["Class that follows from it", row.class_expected] : null,
      ["Fires on", `${THRESHER.percent(row.rate_image, 2)} of image rows, ${THRESHER.percent(row.rate_text, 2)} of text rows`],
      ["Energy", `${show(row.energy_image)} on images, ${show(row.energy_text)} on texts`],
      ["Margin", `${THRESHER.percent(row.margin_self, 2)} with itself; ${THRESHER.percent(row.margin_loo, 2)} lost without it`],
      ["Gap", `${THRESHER.percent(row.gap_share, 1)} of it; cosine ${show(row.gap_cosine, 2)}`],
    ].filter(Boolean);
    return h("dl", { class: "facts" }, told.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  };

  THRESHER.views.feature = async (main, { sae, id }) => {
    const feature = Number(id), table = await THRESHER.table(sae);
    if (!Number.isInteger(feature) || feature < 0 || feature >= table.n) throw new Error(`${sae} has no feature ${id}; its features are 0 to ${table.n - 1}`);
    const found = await read(sae, feature), row = found.row;
    const [images, texts] = await Promise.all([THRESHER.images(numbers(found.image)), THRESHER.texts(numbers(found.text))]);
    const { before, after, where } = walk(sae, feature);
    const step = (to, text, name) => h("a", { href: to >= 0 && to < table.n ? link("feature", sae, to) : null, class: "button", "aria-label": name, "aria-disabled": String(!(to >= 0 && to < table.n)) }, text);
    const [asImage, asText] = found.partners, label = table.label(feature);
    main.append(
      h("div", { class: "bar" }, h("a", { href: link("features", sae), class: "button", id: "back" }, "\u2190 table"), step(before, "\u2039 previous", "Previous feature"), step(after, "next \u203a", "Next feature"), h("span", { class: "soft" }, where)),
      h("h1", { id: "feature-title", "data-feature": feature }, `Feature #${feature}`, label ? h("small", {}, " " + label) : "", THRESHER.chip(row.class)),
      h("p", { class: "why" }, THRESHER.reason(row)),
      h("div", { class: "score" }, THRESHER.muBar(row.mu_energy, row.mu_energy_low, row.mu_energy_high), h("div", { class: "ends" }, h("span", { class: "text" }, "text"), h("span", {}, `score ${show(row.mu_energy, 2)} [${show(row.mu_energy_low, 2)}, ${show(row.mu_energy_high, 2)}], by count ${show(row.mu_count, 2)}`), h("span", { class: "image" }, "image"))),
      h("div", { class: "two" }, items("image", found.image, images, pictures), items("text", found.text, texts, captions)),
      h("div", { class: "two" },
        h("section", { class: "card" }, h("h2", {}, "Why this class"), THRESHER.gates(row)),
        h("div", {},
          h("section", { class: "card" }, h("h2", {}, "Activations"), THRESHER.histogram(found.image.histogram, found.text.histogram, THRESHER.run.bins), facts(row)),
          found.steps ? h("section", { class: "card" }, h("h2", {}, "Steps of the pursuit"), h("p", { class: "soft small" }, `Energy per row by the step it is picked at; mean step ${show(row.step_image, 1)} on images, ${show(row.step_text, 1)} on texts.`), THRESHER.steps(...found.steps)) : "")),
      h("div", { class: "two" },
        h("section", { class: "card" }, h("h2", {}, "Partners"), asImage.length + asText.length ? [ego(sae, table, feature, found.partners), h("p", {}, h("a", { href: link("bridge", sae, null, { ego: feature }) }, "In the graph"))] : h("p", { class: "soft" }, "No feature fires on the other end of its pairs more than chance would have it."),
          partnerTable(sae, table, asImage, "Features that fire on the texts of its images"), partnerTable(sae, table, asText, "Features that fire on the images of its texts")),
        h("section", { class: "card" }, h("h2", {}, "Nearest atoms"), h("div", { class: "scroll" }, h("table", { class: "data" },
          h("thead", {}, h("tr", {}, h("th", { class: "left", scope: "col" }, "feature"), h("th", { class: "left", scope: "col" }, "class"), h("th", { scope: "col" }, "cosine"))),
          h("tbody", {}, found.nearest.map(([other, cosine]) => h("tr", {}, h("td", { class: "left" }, THRESHER.featureLink(sae, table, other)), h("td", { class: "left" }, THRESHER.chip(table.get("class", other))), h("td", {}, show(cosine, 3))))))),
          h("details", {}, h("summary", {}, "All columns"), h("div", { class: "scroll" }, h("table", { class: "data" }, h("tbody", {}, Object.entries(row).map(([name, value]) => h("tr", {}, h("th", { scope: "row", class: "left" }, name), h("td", {}, typeof value === "boolean" ? String(value) : show(value)))))))))));
    return key => {
      const to = { j: after, ArrowRight: after, k: before, ArrowLeft: before }[key];
      if (to !== undefined && to >= 0 && to < table.n) location.hash = link("feature", sae, to);
      if (key === "Escape") location.hash = link("features", sae);
      return to !== undefined || key === "Escape";
    };
  };
})();
