"use strict";
// All features of one dictionary: search, filter, sort; only the rows in sight are in the page.
(() => {
  const { h, show, link, CLASSES } = THRESHER;
  const ROW = 30;

  // key | title | width | digits, or what it is | what it means
  const COLUMNS = `
    feature | feature | 72 | id | index in the dictionary
    class | class | 186 | kind | what the gates say
    status | status | 84 | kind | dense: fires on many rows; rare: on few records, or its energy rests on few items
    mu_energy | score | 132 | score | modality score: 0 text, 1 image; bar: 95 % interval
    name_image | name by images | 150 | text | nearest word to what it is about on images
    name_text | name by texts | 150 | text | nearest word to what it is about on texts
    name_atom | name by atom | 150 | text | nearest word to its atom
    tokens | strongest tokens | 190 | text | commonest tokens on which it is strongest in its strongest texts
    concept | concept | 150 | text | ground truth: the concept it tracks best
    n_record_image | images | 72 | 0 | records with an image it fires on
    n_record_text | texts | 72 | 0 | records with a text it fires on
    energy_image | energy image | 128 | 3 | E[z^2] on images
    energy_text | energy text | 114 | 3 | E[z^2] on texts
    rho | rho | 68 | 2 | correlation with itself over pairs
    q | q | 72 | 3 | chance of that, false discoveries controlled
    mms_z | meaning z | 96 | 1 | meaning across modalities, in standard deviations
    agreement | agreement | 98 | 2 | cosine of what it is about on images and on texts
    partner | partner | 84 | id | best correlated feature of the other modality
    partner_rho | rho of it | 82 | 2 | correlation with the partner
    partner_cos | cos of it | 78 | 2 | cosine with the partner
    margin_self | margin self | 104 | 4 | share of the contrastive margin that it makes with itself
    margin_loo | margin without | 128 | 4 | share of the margin lost without it
    gap_share | gap share | 94 | 3 | share of the modality gap
    gap_cosine | gap cos | 72 | 2 | |cosine| with the gap's direction
    n_record | records | 82 | 0 | records in which it fires
    n_item | items | 72 | 0 | items in which it fires
    n_fire | rows | 82 | 0 | rows on which it fires
    rate | rate | 78 | 4 | share of the rows on which it fires
    rate_image_tokens | rate, image tokens | 158 | 4 | share of the tokens of images on which it fires
    rate_text_tokens | rate, text tokens | 148 | 4 | share of the tokens of texts on which it fires
    mu_tokens | score of tokens | 124 | 2 | its energy per token: 1 all on tokens of images, 0 all on tokens of texts
    energy | energy | 84 | 3 | E[z^2]
    energy_share | energy share | 124 | 4 | share of the energy of all features
    mean_active | mean z | 82 | 2 | mean z where it fires
    largest | largest | 82 | 2 | largest |z|
    ess | worth items | 112 | 1 | how many equal items its energy is worth
    nearest | nearest | 84 | id | atom of the largest cosine
    nearest_cosine | cos of it | 78 | 2 | cosine with the nearest atom
    stability | stability | 86 | 2 | cosine with its match in other seeds
    step | step | 64 | 1 | mean step of the pursuit it is picked at
    step_image | step image | 100 | 1 | mean step it is picked at on images
    step_text | step text | 88 | 1 | mean step it is picked at on texts
    mu_count | score by count | 126 | 2 | modality score by firing rates`.trim().split("\n").map(line => {
    const [key, title, width, what, ...about] = line.split(" | ").map(part => part.trim());
    return { key, title, width: Number(width), what, about: about.join(" | ") };
  });

  // Words of a search: `#12` or a number, `rho>0.3`, or letters in a name, concept or class.
  const alias = title => title.replace(/\W+/g, "_");
  const resolve = (table, name) => (table.has(name) ? name : (COLUMNS.find(({ key, title }) => alias(title) === name && table.has(key)) || { key: name }).key);
  const parse = (query, table) => query.trim().toLowerCase().split(/\s+/).filter(Boolean).map(word => {
    const condition = word.match(/^([a-z_]+)(>=|<=|>|<|=)(-?[\d.]+(?:e-?\d+)?)$/);
    if (condition) return { column: resolve(table, condition[1]), test: condition[2], value: Number(condition[3]) };
    return /^#?\d+$/.test(word) ? { feature: Number(word.replace("#", "")) } : { letters: word };
  });
  const TESTS = { ">": (a, b) => a > b, "<": (a, b) => a < b, ">=": (a, b) => a >= b, "<=": (a, b) => a <= b, "=": (a, b) => a === b };
  const fits = (table, words, row) => words.every(word => {
    if (word.feature !== undefined) return row === word.feature;
    if (word.letters !== undefined) return ["name_image", "name_text", "name_atom", "tokens", "concept", "class", "status"].some(name => (table.get(name, row) || "").toLowerCase().includes(word.letters));
    const value = table.get(word.column, row);
    return typeof value === "number" && TESTS[word.test](value, word.value);
  });

  const select = (table, state) => {
    const words = parse(state.q, table), rows = [];
    for (let row = 0; row < table.n; row++) {
      if (state.classes.size && !state.classes.has(table.kind(row))) continue;
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

  const cell = (table, row, { key, what }) => {
    const value = table.get(key, row);
    if (value === null) return "-";
    if (what === "score") return [THRESHER.muBar(value, table.get("mu_energy_low", row), table.get("mu_energy_high", row)), h("span", { class: "mu-value" }, value.toFixed(2))];
    if (what === "kind") return THRESHER.chip(value);
    if (what === "id") return value < 0 ? "-" : "#" + value;
    return what === "text" ? h("span", { title: value }, value) : show(value, Number(what));
  };

  const toCsv = (table, rows, columns) => {
    const keys = columns.map(column => column.key).flatMap(key => (key === "mu_energy" ? [key, "mu_energy_low", "mu_energy_high"] : [key]));
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

  // Where the reader was, per dictionary: the feature, and the table as it was searched and sorted.
  const places = new Map(), addresses = new Map();
  THRESHER.backTo = sae => addresses.get(sae) || link("features", sae);

  THRESHER.views.features = async (main, { sae, query }) => {
    const table = await THRESHER.table(sae), usual = THRESHER.isSingle ? "-energy" : "-energy_image";
    const state = {
      q: query.get("q") || "", sort: query.get("sort") || usual,
      classes: new Set((query.get("class") || "").split(",").filter(kind => CLASSES.includes(kind))),
      only: query.get("only") ? new Set(query.get("only").split(".").map(Number)) : null,
    };
    const columns = COLUMNS.filter(({ key }) => table.has(key) && !empty(table, key) && (key !== "status" || THRESHER.isSingle));
    const template = columns.map(column => column.width + "px").join(" "), width = columns.reduce((sum, column) => sum + column.width, 0);
    let rows = [], current = 0;

    const search = h("input", { type: "search", id: "search", value: state.q, placeholder: THRESHER.isSingle ? "name, token, #12, rate>0.01 ess>50" : "name, concept, #12, rho>0.3 q<0.05", "aria-label": "Search features", autocomplete: "off", spellcheck: "false" });
    const counts = CLASSES.map(kind => [kind, count(table, kind)]).filter(([, n]) => n);
    const chips = counts.map(([kind, n]) => h("button", { type: "button", class: "filter", "data-class": kind, "aria-pressed": String(state.classes.has(kind)), onclick: event => {
      state.classes.has(kind) ? state.classes.delete(kind) : state.classes.add(kind);
      event.currentTarget.setAttribute("aria-pressed", String(state.classes.has(kind)));
      update();
    } }, h("i", { class: "dot", style: `background:var(--class-${kind})` }), `${kind} `, h("small", {}, String(n))));
    const status = h("span", { id: "count", role: "status", class: "soft" });
    const heads = columns.map(({ key, title, about }) => h("div", { role: "columnheader", "data-key": key, title: about, class: isNumber(table, key) ? "right" : null }, h("button", { type: "button", tabindex: "-1", onclick: () => {
      state.sort = state.sort === "-" + key ? key : "-" + key;
      update();
    } }, title)));
    const head = h("div", { role: "row", class: "grid-head", style: `grid-template-columns:${template}` }, heads);
    const body = h("div", { class: "grid-body", role: "rowgroup" });
    const grid = h("div", { id: "grid", role: "grid", tabindex: "0", "aria-label": `Features of ${sae}`, "aria-colcount": columns.length }, head, body);
    const none = h("p", { class: "soft", id: "none", hidden: true });
    grid.append(none);
    head.style.width = body.style.width = width + "px";

    const paint = () => {
      const first = Math.max(0, Math.floor(grid.scrollTop / ROW) - 8), last = Math.min(rows.length, first + Math.ceil(grid.clientHeight / ROW) + 16);
      body.replaceChildren(...rows.slice(first, last).map((row, k) => h("div", {
        role: "row", id: `row-${row}`, "data-feature": row, "aria-rowindex": first + k + 2, "aria-selected": String(first + k === current), class: "grid-row",
        style: `top:${(first + k) * ROW}px;grid-template-columns:${template}`,
      }, columns.map(column => h("div", { role: "gridcell", class: isNumber(table, column.key) ? "right" : null }, column.key === "feature" ? h("a", { href: link("feature", sae, row), tabindex: "-1" }, "#" + row) : cell(table, row, column))))));
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
      addresses.set(sae, link("features", sae, null, { q: state.q, class: [...state.classes].join(","), sort: state.sort === usual ? "" : state.sort, only: state.only ? [...state.only].join(".") : "" }));
      THRESHER.setHash(addresses.get(sae));
      none.hidden = rows.length > 0;
      const unknown = parse(state.q, table).filter(word => word.column && !table.has(word.column)).map(word => word.column);
      none.textContent = unknown.length ? `There is no column ${unknown.join(", ")}. Columns are called as in the head of the table or in features.parquet: ${columns.filter(column => isNumber(table, column.key)).slice(0, 6).map(column => alias(column.title)).join(", ")} ...` : "No feature fits the search and the filters.";
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
      h("div", { class: "bar", role: "group", "aria-label": THRESHER.isSingle ? "Statuses" : "Classes" }, chips), grid);
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
    const { levels, codes } = table.columns[THRESHER.isSingle ? "status" : "class"], wanted = levels.indexOf(kind);
    return wanted < 0 ? 0 : codes.reduce((sum, code) => sum + (code === wanted), 0);
  };
})();
