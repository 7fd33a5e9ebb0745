"use strict";
// One feature: what it fires on, how often, and why it has its class.
(() => {
  const { h, show, percent, link } = THRESHER;

  const read = async (sae, feature) => {
    const size = THRESHER.run.sizes.features, { all } = await THRESHER.load(`${sae}/table`);
    const shard = await THRESHER.load(`${sae}/features-${String(Math.floor(feature / size)).padStart(4, "0")}`);
    const found = shard[feature % size];
    return { ...found, row: Object.fromEntries(all.map((name, k) => [name, found.row[k]])) };
  };
  const numbers = side => [...side.top[0], ...side.bands.flatMap(band => band[0])];

  const strength = (code, most) => `z = ${show(code, 2)}` + (most ? `, ${show(Math.abs(code / most), 2)} of the largest` : "");
  const bandName = (band, n) => (["strongest quarter", "second quarter", "third quarter", "weakest quarter"][band] || `part ${band + 1} of ${n}`);
  // Items of one list; `first` is the place of its first trace among those of the side.
  const pictures = (side, [ids, codes], known, first) => h("div", { class: "pictures" }, ids.map((id, k) => {
    const picture = THRESHER.picture(known.items.get(id), strength(codes[k], side.top[1][0])), trace = side.traces && side.traces[first + k], rows = known.rows && known.rows.get(id);
    return h("figure", { class: "shot" }, trace !== undefined && rows && rows[1] ? THRESHER.heat(picture, rows, trace, side.largest) : picture, h("figcaption", {}, show(codes[k], 2)));
  }));
  const captions = (side, [ids, codes], known, first) => h("ol", { class: "captions" }, ids.map((id, k) => {
    const trace = side.traces && side.traces[first + k], rows = known.rows && known.rows.get(id), has = trace !== undefined && rows;
    const seen = has && known.seen.get(rows[3]), picture = seen ? THRESHER.picture(seen) : null;
    const said = has && rows[0] ? THRESHER.highlight(rows, trace, side.largest) : h("span", {}, known.items.get(id));
    // A model that reads image and text in one sequence has an image in front of the tokens.
    return h("li", { title: has ? null : strength(codes[k], side.top[1][0]) }, has && (rows[1] || picture) ? h("div", { class: "beside" }, rows[1] ? THRESHER.heat(picture, rows, trace, side.largest) : picture, said) : said, h("small", {}, show(codes[k], 2)));
  }));

  const items = (kind, side, known, draw) => {
    const starts = side.bands.map((_, k) => side.top[0].length + side.bands.slice(0, k).reduce((sum, band) => sum + band[0].length, 0));
    const title = kind === "image" ? "Images" : known.seen.size ? "Texts and their images" : THRESHER.isSingle ? "Texts" : "Captions";
    return h("section", { class: "side", "aria-label": title },
      h("h2", { class: kind }, title, h("small", {}, side.n ? ` fires on ${show(side.n)}${kind === "text" && side.n > 1 ? " different ones" : ""}` : " fires on none")),
      side.n && side.traces ? THRESHER.heatLegend(kind, side, known.seen.size > 0) : "",
      side.n ? draw(side, side.top, known, 0) : "",
      side.bands.length ? h("details", { open: true }, h("summary", {}, "Samples from strong to weak"), h("div", {}, side.bands.map((band, k) => [h("h3", {}, bandName(k, side.bands.length)), draw(side, band, known, starts[k])]))) : "");
  };
  const know = async (kind, side) => {
    const [found, rows] = await Promise.all([(kind === "image" ? THRESHER.images : THRESHER.texts)(numbers(side)), side.traces ? THRESHER.rows(kind, numbers(side)) : null]);
    const behind = [...(rows ? rows.values() : [])].map(one => one[3]).filter(one => one !== undefined && one !== null);
    return { items: found, rows, seen: behind.length ? await THRESHER.images(behind) : new Map() };
  };

  const walk = (sae, feature) => {
    const { ids } = THRESHER.order.sae === sae ? THRESHER.order : { ids: [] }, place = ids.indexOf(feature);
    if (place < 0) return { before: feature - 1, after: feature + 1, where: "" };
    return { before: place > 0 ? ids[place - 1] : -1, after: place + 1 < ids.length ? ids[place + 1] : -1, where: `${place + 1} of ${ids.length} in the table` };
  };

  const crossedFacts = row => [
    ...[["image", row.name_image], ["text", row.name_text]].filter(([, name]) => name).map(([kind, name]) => [`Name by ${kind}s`, name]),
    row.concept ? ["Concept (ground truth)", `${row.concept}, ${row.concept_visibility}; phi ${show(row.phi_image, 2)} on images, ${show(row.phi_text, 2)} on texts`] : null,
    row.class_expected ? ["Class that follows from it", row.class_expected] : null,
    ["Fires on", `${percent(row.rate_image, 2)} of image rows, ${percent(row.rate_text, 2)} of text rows`],
    ["Energy", `${show(row.energy_image)} on images, ${show(row.energy_text)} on texts`],
    ["Margin", `${percent(row.margin_self, 2)} with itself; ${percent(row.margin_loo, 2)} lost without it`],
    ["Gap", `${percent(row.gap_share, 1)} of it; cosine ${show(row.gap_cosine, 2)}`],
  ];
  const singleFacts = (row, tokens) => [
    row.name_atom ? ["Name by vocabulary", `${row.name_atom} (${show(row.name_atom_z, 1)} standard deviations)`] : null,
    tokens ? ["Strongest on the tokens", tokens] : null,
    ["Fires on", `${percent(row.rate, 2)} of rows: ${show(row.n_fire)}, in ${show(row.n_item)} items of ${show(row.n_record)} records`],
    row.rate_image === undefined ? null : ["By modality", `${percent(row.rate_image, 2)} of image rows, ${percent(row.rate_text, 2)} of text rows; score ${show(row.mu_energy, 2)} [${show(row.mu_energy_low, 2)}, ${show(row.mu_energy_high, 2)}]`],
    row.rate_image_tokens === undefined ? null : ["By kind of token", `on ${percent(row.rate_image_tokens, 2)} of image tokens and ${percent(row.rate_text_tokens, 2)} of text tokens; ${percent(row.mu_tokens, 1)} of its energy per token on those of images`],
    ["Energy", `${show(row.energy)} per row, ${percent(row.energy_share, 2)} of that of all features`],
    ["z where it fires", `${show(row.mean_active)} on average, ${show(row.largest)} at most` + (row.n_negative ? `; negative in ${show(row.n_negative)} rows` : "")],
    ["Items its energy is worth", show(row.ess, 1)],
    row.stability === null || row.stability === undefined ? null : ["Cosine in other seeds", `${show(row.stability, 2)}; of random atoms ${show(row.stability_null, 2)}`],
  ];
  const facts = told => h("dl", { class: "facts" }, told.filter(Boolean).map(([name, value]) => [h("dt", {}, THRESHER.term(name)), h("dd", {}, value)]));
  const score = row => h("div", { class: "score" }, THRESHER.muBar(row.mu_energy, row.mu_energy_low, row.mu_energy_high), h("div", { class: "ends" }, h("span", { class: "text" }, "text"), h("span", {}, `score ${show(row.mu_energy, 2)} [${show(row.mu_energy_low, 2)}, ${show(row.mu_energy_high, 2)}], by count ${show(row.mu_count, 2)}`), h("span", { class: "image" }, "image")));
  const steps = (found, row) => (!found.steps ? "" : h("section", { class: "card" }, h("h2", {}, "Steps of the pursuit"),
    h("p", { class: "soft small" }, "Energy per row by the step it is picked at; mean step " + (THRESHER.isSingle ? `${show(row.step, 1)}.` : `${show(row.step_image, 1)} on images, ${show(row.step_text, 1)} on texts.`)), THRESHER.steps(found.steps)));
  const every = row => h("details", {}, h("summary", {}, "All columns"), h("div", { class: "scroll" }, h("table", { class: "data" }, h("tbody", {}, Object.entries(row).map(([name, value]) => h("tr", {}, h("th", { scope: "row", class: "left" }, name), h("td", {}, typeof value === "boolean" ? String(value) : show(value))))))));

  THRESHER.views.feature = async (main, { sae, id }) => {
    const feature = Number(id), table = await THRESHER.table(sae), { modalities } = THRESHER.run;
    if (!Number.isInteger(feature) || feature < 0 || feature >= table.n) throw new Error(`${sae} has no feature ${id}; its features are 0 to ${table.n - 1}`);
    const found = await read(sae, feature), row = found.row;
    const known = await Promise.all(modalities.map(kind => know(kind, found[kind])));
    const { before, after, where } = walk(sae, feature);
    const step = (to, text, name) => h("a", { href: to >= 0 && to < table.n ? link("feature", sae, to) : null, class: "button", "aria-label": name, "aria-disabled": String(!(to >= 0 && to < table.n)) }, text);
    const label = table.label(feature), single = THRESHER.isSingle;
    const shown = h("div", { class: modalities.length < 2 ? null : "two" }, modalities.map((kind, k) => items(kind, found[kind], known[k], kind === "image" ? pictures : captions)));
    const activations = h("section", { class: "card" }, h("h2", {}, "Activations"), THRESHER.histogram(modalities.map(kind => [kind, found[kind].histogram]), THRESHER.run.bins), facts(single ? singleFacts(row, table.get("tokens", feature)) : crossedFacts(row)));
    const near = h("section", { class: "card" }, THRESHER.nearest(sae, table, found.nearest), every(row));
    main.append(
      h("div", { class: "bar" }, h("a", { href: THRESHER.backTo(sae), class: "button", id: "back" }, "\u2190 table"), step(before, "\u2039 previous", "Previous feature"), step(after, "next \u203a", "Next feature"), h("span", { class: "soft" }, where)),
      h("h1", { id: "feature-title", "data-feature": feature }, `Feature #${feature}`, label ? h("small", {}, " " + label) : "", THRESHER.chip(table.kind(feature))),
      THRESHER.keysOnly(modalities),
      ...(single
        ? [shown, h("div", { class: "two" }, h("div", {}, activations, steps(found, row)), near)]
        : [h("p", { class: "why" }, THRESHER.reason(row)), score(row), shown,
           h("div", { class: "two" }, h("section", { class: "card" }, h("h2", {}, "Why this class"), THRESHER.gates(row)), h("div", {}, activations, steps(found, row))),
           h("div", { class: "two" }, THRESHER.partners(sae, table, feature, found.partners), near)]));
    return key => {
      const to = { j: after, ArrowRight: after, k: before, ArrowLeft: before }[key];
      if (to !== undefined && to >= 0 && to < table.n) location.hash = link("feature", sae, to);
      if (key === "Escape") location.hash = THRESHER.backTo(sae);
      return to !== undefined || key === "Escape";
    };
  };
})();
