"use strict";
// The whole run: headline numbers, classes, what the warnings say.
(() => {
  const { h, show, percent, estimate, link, CLASSES } = THRESHER;

  const classBar = (sae, groups) => {
    const parts = CLASSES.map(kind => ({ label: kind, value: THRESHER.count(sae, kind), color: `var(--class-${kind})` }));
    return THRESHER.stack(parts, value => String(value));
  };

  const classTable = (sae, groups) => {
    const shares = (key, kind) => estimate(groups[key] && groups[key][kind], value => percent(value));
    return h("div", { class: "scroll" }, h("table", { class: "data" },
      h("thead", {}, h("tr", {}, ["class", "features", "by chance", "energy, images", "energy, texts", "margin lost without", "gap carried"].map((text, k) => h("th", { scope: "col", class: k ? null : "left" }, THRESHER.term(text))))),
      h("tbody", {}, CLASSES.map(kind => h("tr", { class: groups.classes[kind].n ? null : "none" },
        h("th", { scope: "row", class: "left" }, h("a", { href: link("features", sae, null, { class: kind }) }, THRESHER.chip(kind))),
        h("td", {}, show(groups.classes[kind].n)),
        h("td", {}, groups.classes[kind].expected_false === undefined ? "" : groups.classes[kind].expected_false.toFixed(1)),
        ["energy_image", "energy_text", "margin_by_class", "gap"].map(key => h("td", {}, groups.classes[kind].n ? shares(key, kind) : "-")))))));
  };

  const facts = groups => {
    const margin = groups.margin || {}, gates = groups.gates || {};
    const rows = [
      ["Contrastive margin", estimate(margin.total)],
      ["of it: shared features with themselves", estimate(margin.shared_self, percent)],
      ["between different shared features", estimate(margin.shared_cross, percent)],
      ["over bridges", estimate(margin.bridged, percent)],
      ["rest", estimate(margin.rest, percent)],
      ["Held-out pairs", groups.pairs ? `${show(groups.pairs.n)} of ${show(groups.pairs.n_images)} images` : "-"],
      ["Meaning judged by", groups.meaning || "none"],
      ["Near duplicates (cosine above 0.95)", near(groups.near_duplicates)],
      ["Other seeds", groups.seeds ? show(groups.seeds.n) : "-"],
      ...Object.entries(gates).map(([name, counts]) => [`Gate ${name}`, Object.entries(counts).map(([outcome, n]) => `${outcome.replace("_", " ")} ${n}`).join(", ")]),
    ];
    return h("dl", { class: "facts" }, rows.map(([name, value]) => [h("dt", {}, THRESHER.term(name)), h("dd", {}, value)]));
  };
  const near = found => (found !== null && typeof found === "object" ? estimate(found) : show(found));

  const gateCounts = groups => {
    const counts = groups.counts || {}, names = Object.keys(counts).sort((a, b) => (a === "with_all" ? -1 : b === "with_all" ? 1 : a < b ? -1 : 1));
    const kinds = CLASSES.filter(kind => names.some(name => counts[name][kind]));
    return h("div", { class: "scroll" }, h("table", { class: "data" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col", class: "left" }, "gates"), kinds.map(kind => h("th", { scope: "col" }, kind)))),
      h("tbody", {}, names.map(name => h("tr", {}, h("th", { scope: "row", class: "left" }, name.replaceAll("_", " ")), kinds.map(kind => h("td", {}, show(counts[name][kind]))))))));
  };

  const truth = found => !found ? null : [
    h("h3", {}, "Against ground truth"),
    h("div", { class: "scroll" }, h("table", { class: "data" },
      h("thead", {}, h("tr", {}, ["class", "precision", "recall"].map((text, k) => h("th", { scope: "col", class: k ? null : "left" }, text)))),
      h("tbody", {}, CLASSES.filter(kind => found[kind] && found[kind].precision).map(kind => h("tr", {},
        h("th", { scope: "row", class: "left" }, kind), ["precision", "recall"].map(key => h("td", {}, estimate(found[kind][key]), h("small", {}, ` n ${show(found[kind][key].n)}`)))))))),
  ];

  const histogram = found => {
    if (!found || !found.edges || !found.observed_energy) return null;
    const { s } = THRESHER, n = found.observed_energy.length, width = THRESHER.fit(460), height = 150;
    const most = Math.max(...found.observed_energy, ...(found.expected_energy || [0])) || 1;
    const y = value => 10 + (height - 40) * (1 - value / most), x = k => 10 + (width - 20) * k / n;
    return h("figure", {},
      s("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": "Histogram of modality scores, observed and expected" },
        found.observed_energy.map((value, k) => s("rect", { x: x(k) + 1, y: y(value), width: x(1) - x(0) - 2, height: height - 30 - y(value), fill: THRESHER.muColor((found.edges[k] + found.edges[k + 1]) / 2) }, s("title", {}, `${show(found.edges[k], 2)} to ${show(found.edges[k + 1], 2)}: ${percent(value)}`))),
        (found.expected_energy || []).map((value, k) => s("line", { x1: x(k), x2: x(k + 1), y1: y(value), y2: y(value), class: "expected" })),
        s("text", { x: 10, y: height - 12, class: "tick" }, "0 text"), s("text", { x: width - 10, y: height - 12, class: "tick", "text-anchor": "end" }, "image 1")),
      h("figcaption", {}, `Modality score of ${show(found.n)} features that fire often enough. Lines: the same firings, were each feature equally at home on both modalities.`));
  };

  const statusTable = (sae, { statuses }) => h("div", { class: "scroll" }, h("table", { class: "data" },
    h("thead", {}, h("tr", {}, ["status", "features", "energy share"].map((text, k) => h("th", { scope: "col", class: k ? null : "left" }, THRESHER.term(text))))),
    h("tbody", {}, CLASSES.map(kind => h("tr", { class: statuses[kind].n ? null : "none" },
      h("th", { scope: "row", class: "left" }, h("a", { href: link("features", sae, null, { class: kind }) }, THRESHER.chip(kind))), h("td", {}, show(statuses[kind].n)), h("td", {}, statuses[kind].n ? percent(statuses[kind].energy) : "-"))))));

  const section = sae => {
    const groups = THRESHER.run.groups[sae], about = THRESHER.run.saes[sae], single = THRESHER.isSingle;
    const warnings = THRESHER.run.warnings.filter(one => one.sae === sae), views = single ? [["features", "All features"], ["map", "Map"]] : [["features", "All features"], ["bridge", "Bridge graph"], ["map", "Map"], ["pairs", "Pairs"], ["find", "Retrieval"]];
    return h("section", { class: "card", "aria-labelledby": `sae-${sae}` },
      h("h2", { id: `sae-${sae}` }, sae, h("small", {}, ` ${about.architecture.kind}, ${show(about.d_sae)} atoms of ${show(about.d_in)}`)),
      h("p", { class: "links" }, views.map(([view, text]) => h("a", { href: link(view, sae) }, text))),
      classBar(sae, groups), ...(single ? [statusTable(sae, groups), warnings.length ? warn(warnings) : ""] : crossed(sae, groups, warnings)));
  };

  const crossed = (sae, groups, warnings) => [
      classTable(sae, groups),
      h("div", { class: "two" }, facts(groups), histogram(groups.histogram)),
      warnings.length ? warn(warnings) : "",
      h("details", {}, h("summary", {}, "Classes with and without each gate", groups.truth ? ", ground truth" : ""), h("div", {}, gateCounts(groups), truth(groups.truth))),
    ];

  const warn = warnings => h("div", { class: "warn", role: "note" }, h("ul", {}, warnings.map(one => h("li", {}, one.text))));

  THRESHER.views.overview = async main => {
    const { run } = THRESHER, held = run.held_out;
    const general = run.warnings.filter(one => !one.sae || !run.groups[one.sae]);
    main.append(
      h("h1", {}, THRESHER.isSingle ? `Features of ${run.modalities.map(kind => kind + "s").join(" and ")}` : "What image and text share"),
      h("p", { class: "soft" }, `${run.store.model}, ${run.store.source}. Held out: ${show(held.records)} records (`, Object.entries(held.panels).map(([name, panel]) => `${name}: ${show(panel.n_items)} items at ${panel.hook_point}`).join("; "), `). Intervals: 95 %, ${run.n_bootstrap} resamples. `, h("a", { href: link("words"), id: "words" }, "What the words mean")),
      general.length ? warn(general) : "",
      h("div", { class: "scroll" }, summary(run.summary)),
      ...run.order.map(section));
  };

  const summary = rows => {
    const heads = rows.length ? Object.keys(rows[0]) : [];
    heads.sort((a, b) => order(a) - order(b));
    return h("table", { class: "data", id: "summary" },
      h("thead", {}, h("tr", {}, heads.map((text, k) => h("th", { scope: "col", class: k ? null : "left" }, k && THRESHER.run.order.includes(text) ? h("button", { type: "button", class: "plain", title: `To what is said of ${text} below`, onclick: () => document.getElementById(`sae-${text}`).scrollIntoView() }, text) : text)))),
      h("tbody", {}, rows.map(row => h("tr", {}, heads.map((head, k) => (k ? h("td", {}, row[head]) : h("th", { scope: "row", class: /^ /.test(row[head]) ? "left inner" : "left" }, meant(row[head]))))))));
  };
  const meant = label => (THRESHER.about(label, "Whole dictionary") ? THRESHER.term(label, "Whole dictionary") : THRESHER.term(label));
  // Dictionaries in the order of the analysis; what names the row comes first.
  const order = head => THRESHER.run.all.indexOf(head);
  THRESHER.summary = summary;
})();
