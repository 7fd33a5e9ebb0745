"use strict";
// Why a feature has its class: each value beside the threshold that it met or missed.
(() => {
  const { h, show } = THRESHER;

  // Rows of [gate, outcome, [[what, value, rule, met]]] from a feature's row and the settings.
  const judge = row => {
    const { thresholds: edge, battery } = THRESHER.run;
    const atLeast = (what, value, least) => [what, value, `at least ${least}`, value === null ? null : value >= least];
    const atMost = (what, value, most) => [what, value, `at most ${most}`, value === null ? null : value <= most];
    const above = (what, value, least) => [what, value, `above ${show(least)}`, value === null ? null : value > least];
    const interval = `[${show(row.mu_energy_low, 2)}, ${show(row.mu_energy_high, 2)}]`;
    return [
      ["status", row.status, [
        atLeast("records it fires on, by image or by text", row.n_record_image + row.n_record_text, edge.rare_below),
        atLeast("items its energy is worth", row.ess, battery.ess_below)]],
      ["activation", row.gate_activation, [
        ["interval of the modality score", interval, `both: inside [${edge.text_below}, ${edge.image_above}]; one: beyond`, row.gate_activation === null ? null : row.gate_activation !== "undecided"]]],
      ["pairing", row.gate_pairing, [atMost("q", row.q, edge.alpha), atLeast("rho with itself over pairs", row.rho, battery.least_rho)]],
      ["meaning", row.gate_meaning, [atLeast("z against random items", row.mms_z, battery.least_z), atLeast("agreement of images and texts", row.agreement, battery.least_agreement)]],
      ["partner", null, [
        ["each the other's best", row.is_mutual === null ? null : row.is_mutual ? "yes" : "no", "yes", row.is_mutual], atMost("q", row.partner_q, edge.alpha),
        atLeast("rho with the partner", row.partner_rho, battery.least_bridge_rho), above("cosine (collinear)", row.partner_cos, battery.collinear_above)]],
      ["gap", null, [
        ["dense", row.is_dense ? "yes" : "no", `fires on more than ${battery.dense_above}`, row.is_dense], atLeast("share of the gap, either sign", row.gap_share === null ? null : Math.abs(row.gap_share), battery.bias_gap_share),
        atLeast("cosine with the gap", row.gap_cosine, battery.bias_cosine)]],
      ["causal", row.gate_causal, [above("margin lost without it, lower bound", row.margin_loo_low, 0)]],
      ["robustness", row.gate_robustness, [atLeast("cosine in other seeds", row.stability, battery.least_stability), above("and above its null", row.stability, row.stability_null)]],
    ];
  };

  const REASONS = {
    dead: () => "It fires on no held-out row.",
    rare: row => `Too few firings to judge: ${row.n_record_image} records by their image, ${row.n_record_text} by a text, worth ${show(row.ess, 1)} equal items.`,
    undecided: row => `The interval of its score, ${show(row.mu_energy_low, 2)} to ${show(row.mu_energy_high, 2)}, crosses a threshold: more held-out items would settle it.`,
    shared: row => `It fires on both modalities, on the two ends of the same pairs (rho ${show(row.rho, 2)})` + (row.gate_meaning === "pass" ? " and about the same." : "; meaning was not tested."),
    "bimodal-polysemantic": row => "It fires on both modalities, but " + [row.gate_pairing === "fail" ? "not on the ends of the same pairs" : null, row.gate_meaning === "fail" ? "not about the same" : null].filter(Boolean).join(" and ") + (row.gate_pairing === "fail" || row.gate_meaning === "fail" ? "." : "a gate that the settings require fails."),
    "modality-bias": row => `One modality, dense, and it carries the gap (share ${show(row.gap_share, 2)}, cosine ${show(row.gap_cosine, 2)}).`,
    "bridged-collinear": row => `One modality; feature #${row.partner} of the other fires on the same pairs (rho ${show(row.partner_rho, 2)}) and points the same way (cosine ${show(row.partner_cos, 2)}).`,
    "bridged-heterogeneous": row => `One modality; feature #${row.partner} of the other fires on the same pairs (rho ${show(row.partner_rho, 2)}) but points elsewhere (cosine ${show(row.partner_cos, 2)}).`,
    "modality-specific": () => "One modality, and no partner on the other.",
  };
  const mark = met => (met === null || met === undefined ? h("span", { class: "soft" }, "-") : met ? h("span", { class: "yes" }, "\u2713 met") : h("span", { class: "no" }, "\u2717 not met"));
  // What a line is about, with what its word means.
  const meant = what => { const word = { "interval of the modality score": "modality score", "z against random items": "meaning z", "agreement of images and texts": "agreement", "items its energy is worth": "worth equal items", "cosine in other seeds": "stability", "cosine (collinear)": "cos", "each the other's best": "partner", "share of the gap, either sign": "gap" }[what]; return word ? h("span", { class: "term", title: THRESHER.about(word) }, what) : THRESHER.term(what); };

  THRESHER.reason = row => (REASONS[row.class] ? REASONS[row.class](row) : "");
  THRESHER.gates = row => h("div", { class: "scroll" }, h("table", { class: "data gates" },
    h("thead", {}, h("tr", {}, ["gate", "", "value", "threshold", ""].map((text, k) => h("th", { scope: "col", class: k < 2 ? "left" : null }, text)))),
    judge(row).map(([gate, outcome, tests]) => h("tbody", {}, tests.map(([what, value, rule, met], k) => h("tr", {},
      k ? null : h("th", { scope: "rowgroup", rowspan: tests.length, class: "left" }, gate, outcome ? h("small", { class: "outcome" }, outcome) : null),
      h("td", { class: "left" }, meant(what)), h("td", {}, typeof value === "string" ? value : show(value)), h("td", { class: "soft" }, rule), h("td", { class: "left" }, mark(met))))))));
})();
