"use strict";
// All features of one dictionary: search, filter, sort; only the rows in sight are in the page.
(() => {
  const { h, show, link, CLASSES } = THRESHER;
  const ROW = 30;

  // key, title, width, what it means, how it is shown
  const number = digits => (value => show(value, digits));
  const COLUMNS = [
    ["feature", "feature", 72, "index in the dictionary", value => "#" + value],
    ["class", "class", 172, "what the gates say", value => THRESHER.chip(value)],
    ["mu_energy", "score", 132, "modality score: 0 text, 1 image; bar: 95 % interval", null],
    ["name_image", "name by images", 150, "nearest word to what it is about on images", null],
    ["name_text", "name by texts", 150, "nearest word to what it is about on texts", null],
    ["concept", "concept", 150, "ground truth: the concept it tracks best", null],
    ["n_record_image", "images", 72, "records with an image it fires on", number(0)],
    ["n_record_text", "texts", 72, "records with a text it fires on", number(0)],
    ["energy_image", "energy image", 118, "E[z^2] on images", number(3)],
    ["energy_text", "energy text", 106, "E[z^2] on texts", number(3)],
    ["rho", "rho", 68, "correlation with itself over pairs", number(2)],
    ["q", "q", 72, "chance of that, false discoveries controlled", number(3)],
    ["mms_z", "meaning z", 96, "meaning across modalities, in standard deviations", number(1)],
    ["agreement", "agreement", 98, "cosine of what it is about on images and on texts", number(2)],
    ["partner", "partner", 84, "best correlated feature of the other modality", value => (value < 0 ? "-" : "#" + value)],
    ["partner_rho", "rho of it", 82, "correlation with the partner", number(2)],
    ["partner_cos", "cos of it", 78, "cosine with the partner", number(2)],
    ["margin_self", "margin self", 104, "share of the contrastive margin that it makes with itself", number(4)],
    ["margin_loo", "margin without", 128, "share of the margin lost without it", number(4)],
    ["gap_share", "gap share", 94, "share of the modality gap", number(3)],
    ["gap_cosine", "gap cos", 72, "|cosine| with the gap's direction", number(2)],
    ["stability", "stability", 86, "cosine with its match in other seeds", number(2)],
    ["step_image", "step image", 100, "mean step it is picked at on images", number(1)],
    ["step_text", "step text", 88, "mean step it is picked at on texts", number(1)],
    ["mu_count", "score by count", 126, "modality score by firing rates", number(2)],
  ];

  // Words of a search: `#12` or a number, `rho>0.3`, or letters in a name, concept or class.
  const parse = query => query.trim().toLowerCase().split(/\s+/).filter(Boolean).map(word => {
    const condition = word.match(/^([a-z_]+)(>=|<=|>|<|=)(-?[\d.]+(?:e-?\d+)?)$/);
    if (condition) return { column: condition[1], test: condition[2], value: Number(condition[3]) };
    return /^#?\d+$/.test(word) ? { feature: Number(word.replace("#", "")) } : { letters: word };
  });
  const TESTS = { ">": (a, b) => a > b, "<": (a, b) => a < b, ">=": (a, b) => a >= b, "<=": (a, b) => a <= b, "=": (a, b) => a === b };
  const fits = (table, words, row) => words.every(word => {
    if (word.feature !== undefined) return row === word.feature;
    if (word.letters !== undefined) return ["name_image", "name_text", "concept", "class", "status"].some(name => (table.get(name, row) || "").toLowerCase().includes(word.letters));
    const value = table.get(word.column, row);
    return typeof value === "number" && TESTS[word.test](value, word.value);
  });

  const select = (table, state) => {
    const words = parse(state.q), rows = [];
    for (let row = 0; row < table.n; row++) {
      if (state.classes.size && !state.classes.has(table.get("class", row))) continue;
      if (state.only && !state.only.has(row)) continue;
      if (fits(table, words, row)) rows.push(row);
    }
    const down = state.sort.startsWith("-"), key = state.sort.replace("-", "");
    const values = new Map(rows.map(row => [row, table.get(key, row)]));
    return rows.sort((a, b) => {
      const x = values.get(a), y = values.get(b);
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      const order = typeof x === "string" ? (x < y ? -1 : x > y ? 1 : 0) : x - y;
      return (down ? -order : order) || a - b;
    });
  };

  const cell = (table, row, [key, , , , format]) => {
    const value = table.get(key, row);
    if (key === "mu_energy") return [THRESHER.muBar(value, table.get("mu_energy_low", row), table.get("mu_energy_high", row)), h("span", { class: "mu-value" }, show(value, 2))];
    return format ? (value === null ? "-" : format(value)) : show(value);
  };

  const toCsv = (table, rows, columns) => {
    const keys = columns.map(column => column[0]).flatMap(key => (key === "mu_energy" ? [key, "mu_energy_low", "mu_energy_high"] : [key]));
    // A leading = + - @ in a text would be a formula to a spreadsheet.
    const quote = value => {
      if (value === null) return "";
      if (typeof value !== "string") return String(value);
      return `"${(/^[=+\-@\t\r]/.test(value) ? "'" + value : value).replaceAll('"', '""')}"`;
    };
    return [keys.join(","), ...rows.map(row => keys.map(key => quote(table.get(key, row))).join(","))].join("\n") + "\n";
  };
  const save = (name, text) => {
    const url = URL.createObjectURL(new Blob([text], { type: "text/csv" })), anchor = h("a", { href: url, download: name });
    document.body.append(anchor);
    anchor.click();
    anchor.remove();
    URL.revokeObjectURL(url);
  };

  // Where the reader was, per dictionary.
  const places = new Map();

  THRESHER.views.features = async (main, { sae, query }) => {
    const table = await THRESHER.table(sae);
    const state = {
      q: query.get("q") || "", sort: query.get("sort") || "-energy_image",
      classes: new Set((query.get("class") || "").split(",").filter(kind => CLASSES.includes(kind))),
      only: query.get("only") ? new Set(query.get("only").split(".").map(Number)) : null,
    };
    const columns = COLUMNS.filter(([key]) => table.has(key) && !empty(table, key));
    const template = columns.map(([, , width]) => width + "px").join(" "), width = columns.reduce((sum, column) => sum + column[2], 0);
    let rows = [], current = 0;

    const search = h("input", { type: "search", id: "search", value: state.q, placeholder: "name, concept, #12, rho>0.3 q<0.05", "aria-label": "Search features", autocomplete: "off", spellcheck: "false" });
    const counts = CLASSES.map(kind => [kind, count(table, kind)]).filter(([, n]) => n);
    const chips = counts.map(([kind, n]) => h("button", { type: "button", class: "filter", "data-class": kind, "aria-pressed": String(state.classes.has(kind)), onclick: event => {
      state.classes.has(kind) ? state.classes.delete(kind) : state.classes.add(kind);
      event.currentTarget.setAttribute("aria-pressed", String(state.classes.has(kind)));
      update();
    } }, h("i", { class: "dot", style: `background:var(--class-${kind})` }), `${kind} `, h("small", {}, String(n))));
    const status = h("span", { id: "count", role: "status", class: "soft" });
    const heads = columns.map(([key, title, , about]) => h("div", { role: "columnheader", "data-key": key, title: about, class: isNumber(table, key) ? "right" : null }, h("button", { type: "button", tabindex: "-1", onclick: () => {
      state.sort = state.sort === "-" + key ? key : "-" + key;
      update();
    } }, title)));
    const head = h("div", { role: "row", class: "grid-head", style: `grid-template-columns:${template}` }, heads);
    const body = h("div", { class: "grid-body", role: "rowgroup" });
    const grid = h("div", { id: "grid", role: "grid", tabindex: "0", "aria-label": `Features of ${sae}`, "aria-colcount": columns.length }, head, body);
    head.style.width = body.style.width = width + "px";

    const paint = () => {
      const first = Math.max(0, Math.floor(grid.scrollTop / ROW) - 8), last = Math.min(rows.length, first + Math.ceil(grid.clientHeight / ROW) + 16);
      body.replaceChildren(...rows.slice(first, last).map((row, k) => h("div", {
        role: "row", id: `row-${row}`, "data-feature": row, "aria-rowindex": first + k + 2, "aria-selected": String(first + k === current), class: "grid-row",
        style: `top:${(first + k) * ROW}px;grid-template-columns:${template}`,
      }, columns.map(column => h("div", { role: "gridcell", class: isNumber(table, column[0]) ? "right" : null }, column[0] === "feature" ? h("a", { href: link("feature", sae, row), tabindex: "-1" }, "#" + row) : cell(table, row, column))))));
      rows.length ? grid.setAttribute("aria-activedescendant", `row-${rows[current]}`) : grid.removeAttribute("aria-activedescendant");
    };
    const go = place => {
      current = Math.max(0, Math.min(rows.length - 1, place));
      const top = current * ROW, height = grid.clientHeight - ROW;
      if (top < grid.scrollTop) grid.scrollTop = top;
      else if (top + ROW > grid.scrollTop + height) grid.scrollTop = top + ROW - height;
      places.set(sae, rows[current]);
      paint();
    };
    const update = start => {
      rows = select(table, state);
      THRESHER.order = { sae, ids: rows };
      body.style.height = rows.length * ROW + "px";
      grid.setAttribute("aria-rowcount", rows.length + 1);
      for (const one of heads) {
        const key = one.dataset.key;
        one.setAttribute("aria-sort", state.sort === key ? "ascending" : state.sort === "-" + key ? "descending" : "none");
      }
      status.textContent = `${rows.length.toLocaleString("en-US")} of ${table.n.toLocaleString("en-US")} features`;
      THRESHER.setHash(link("features", sae, null, { q: state.q, class: [...state.classes].join(","), sort: state.sort === "-energy_image" ? "" : state.sort, only: state.only ? [...state.only].join(".") : "" }));
      go(Math.max(0, rows.indexOf(start)));
    };
    search.addEventListener("input", () => { state.q = search.value; update(); });
    search.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === "ArrowDown") { event.preventDefault(); grid.focus(); }
      if (event.key === "Escape") { event.preventDefault(); event.stopPropagation(); if (search.value) { search.value = state.q = ""; update(); } else grid.focus(); }
    });
    grid.addEventListener("scroll", paint);
    body.addEventListener("click", event => {
      const row = event.target.closest("[data-feature]");
      if (row && !event.target.closest("a")) location.hash = link("feature", sae, row.dataset.feature);
    });
    const page = () => Math.max(1, Math.floor(grid.clientHeight / ROW) - 2);
    const keys = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 };
    grid.addEventListener("keydown", event => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key in keys) go(current + keys[event.key]);
      else if (event.key === "PageDown") go(current + page());
      else if (event.key === "PageUp") go(current - page());
      else if (event.key === "Home") go(0);
      else if (event.key === "End") go(rows.length - 1);
      else if (event.key === "Enter" && rows.length) location.hash = link("feature", sae, rows[current]);
      else return;
      event.preventDefault();
    });
    const reset = state.only ? h("button", { type: "button", onclick: event => { state.only = null; event.currentTarget.remove(); update(); } }, "Leave the selection of the map") : "";
    main.append(
      h("div", { class: "bar" }, search, h("button", { type: "button", id: "csv", title: "The rows in sight and out of sight; all columns are in features.parquet", onclick: () => save(`${sae}-features.csv`, toCsv(table, rows, columns)) }, "Save as CSV"), reset, status),
      h("div", { class: "bar", role: "group", "aria-label": "Classes" }, chips), grid);
    update(places.get(sae));
    new ResizeObserver(paint).observe(grid);
    grid.focus({ preventScroll: true });
  };

  const isNumber = (table, key) => Array.isArray(table.columns[key]) && key !== "mu_energy";
  const empty = (table, key) => {
    const column = table.columns[key];
    return Array.isArray(column) ? column.every(value => value === null) : column.codes.every(code => code < 0);
  };
  const count = (table, kind) => {
    const { levels, codes } = table.columns.class, wanted = levels.indexOf(kind);
    return wanted < 0 ? 0 : codes.reduce((sum, code) => sum + (code === wanted), 0);
  };
})();
