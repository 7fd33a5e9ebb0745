"use strict";
// What all views use: data shards, DOM without markup from data, numbers, colours.
const THRESHER = { views: {}, order: { sae: "", ids: [] } };

(() => {
  const found = new Map(), waiting = new Map();

  // Shards call this.
  THRESHER.put = (name, value) => {
    found.set(name, value);
    if (name === "run") THRESHER.start(value);
    const wait = waiting.get(name);
    if (wait) { waiting.delete(name); wait.resolve(value); }
  };

  // Pages opened from disk may not fetch files, but may add scripts.
  THRESHER.load = name => {
    if (found.has(name)) return Promise.resolve(found.get(name));
    if (!waiting.has(name)) {
      const wait = {};
      wait.promise = new Promise((resolve, reject) => { wait.resolve = resolve; wait.reject = reject; });
      waiting.set(name, wait);
      const script = document.createElement("script");
      script.src = "data/" + name.split("/").map(encodeURIComponent).join("/") + ".js";
      script.onload = () => {
        script.remove();
        if (waiting.has(name)) { waiting.delete(name); wait.reject(new Error(`${script.src} does not hold ${name}`)); }
      };
      script.onerror = () => { waiting.delete(name); script.remove(); wait.reject(new Error(`${script.src} cannot be read`)); };
      document.head.append(script);
    }
    return waiting.get(name).promise;
  };

  // Elements; strings become text nodes, never markup.
  const fill = (node, attributes, children) => {
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (key === "style") node.style.cssText = value;
      else node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.flat(3).filter(child => child !== null && child !== undefined && child !== false));
    return node;
  };
  THRESHER.h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  THRESHER.s = (tag, attributes, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const h = THRESHER.h;

  // A count, or a measure with its digits.
  THRESHER.show = (value, asked) => {
    const digits = asked ?? 3;
    if (value === null || value === undefined) return "-";
    if (typeof value !== "number") return String(value);
    if (Number.isInteger(value) && (!asked || value === 0)) return Math.abs(value) >= 10000 ? value.toLocaleString("en-US") : String(value);
    const size = Math.abs(value);
    if (size >= 10000 || size < 0.001) return value.toExponential(1);
    return value.toFixed(size >= 100 ? Math.min(1, digits) : size >= 10 ? Math.min(2, digits) : digits);
  };
  THRESHER.percent = (value, digits = 1) => (value === null || value === undefined ? "-" : (100 * value).toFixed(digits).replace(/^-(0(\.0+)?)$/, "$1") + " %");
  // An estimate with its interval.
  THRESHER.estimate = (one, format = THRESHER.show) => {
    if (!one || one.value === null || one.value === undefined) return "-";
    const has = one.low !== null && one.low !== undefined, bound = value => String(format(value)).replace(" %", "");
    return h("span", { title: one.n ? `n = ${one.n} ${one.unit || ""}` : null }, format(one.value), has ? h("small", {}, ` [${bound(one.low)}, ${bound(one.high)}]`) : null);
  };

  // Colours. Blue for images, orange for texts, pale between, grey where undecided.
  const IMAGE = [0, 114, 178], TEXT = [213, 94, 0];
  THRESHER.isDark = () => {
    const asked = document.documentElement.dataset.theme;
    return asked ? asked === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  THRESHER.muColor = (mu, kind) => {
    if (mu === null || mu === undefined || kind === "undecided" || kind === "dead") return THRESHER.isDark() ? "#6d7580" : "#a3a9b1";
    const dark = THRESHER.isDark();
    const middle = dark ? [226, 221, 211] : [201, 193, 178], end = mu > 0.5 ? (dark ? [88, 180, 232] : IMAGE) : (dark ? [240, 137, 62] : TEXT);
    const part = Math.min(1, Math.abs(mu - 0.5) * 2);
    return `rgb(${middle.map((from, k) => Math.round(from + (end[k] - from) * part)).join(",")})`;
  };
  THRESHER.CLASSES = ["shared", "bimodal-polysemantic", "bridged-collinear", "bridged-heterogeneous", "modality-bias", "modality-specific", "undecided", "rare", "dead"];
  // With one modality nothing is shared: features have a status instead of a class.
  THRESHER.start = run => {
    THRESHER.run = run;
    THRESHER.isSingle = !run.is_judged;
    if (THRESHER.isSingle) THRESHER.CLASSES = ["ok", "dense", "rare", "dead"];
  };
  // Features of a class, or status.
  THRESHER.count = (sae, kind) => { const { classes, statuses } = THRESHER.run.groups[sae]; return (classes || statuses)[kind].n; };
  THRESHER.classColor = kind => getComputedStyle(document.documentElement).getPropertyValue("--class-" + kind).trim() || "#888";
  THRESHER.chip = kind => h("span", { class: "chip", title: THRESHER.about(kind) }, h("i", { class: "dot", style: `background:var(--class-${kind})` }), kind);
  THRESHER.muScale = () => h("span", { class: "scale" }, "text 0 ", h("i", { class: "mu-scale" }), " 1 image");

  // One column-wise table per dictionary.
  const tables = new Map();
  THRESHER.table = async sae => {
    if (!tables.has(sae)) {
      const { columns } = await THRESHER.load(`${sae}/table`);
      const get = (name, row) => {
        const column = columns[name];
        if (column === undefined) return null;
        if (Array.isArray(column)) return column[row];
        return column.codes[row] < 0 ? null : column.levels[column.codes[row]];
      };
      const named = [...(THRESHER.isSingle ? ["name_atom"] : ["name_image", "name_text"]), "concept"].filter(name => name in columns && columns[name].codes.some(code => code >= 0));
      const names = named.length || !("tokens" in columns) ? named : ["tokens"];
      const label = row => names.map(name => get(name, row)).filter(name => name !== null).filter((name, k, all) => all.indexOf(name) === k).join(" / ");
      const kind = row => get(THRESHER.isSingle ? "status" : "class", row);
      const color = row => (THRESHER.isSingle ? THRESHER.classColor(kind(row)) : THRESHER.muColor(get("mu_energy", row), kind(row)));
      const energy = row => (THRESHER.isSingle ? get("energy", row) || 0 : (get("energy_image", row) || 0) + (get("energy_text", row) || 0));
      const about = row => (THRESHER.isSingle ? `${kind(row)}, fires on ${THRESHER.percent(get("rate", row), 2)} of rows` : `${kind(row)}, score ${THRESHER.show(get("mu_energy", row), 2)}`);
      tables.set(sae, { columns, get, label, kind, color, energy, about, n: columns.feature.length, has: name => name in columns });
    }
    return tables.get(sae);
  };

  THRESHER.link = (view, sae, feature, query) => {
    const path = ["#", view, sae, feature].filter(part => part !== undefined && part !== null).map((part, k) => (k ? encodeURIComponent(part) : part)).join("/");
    const asked = new URLSearchParams(Object.entries(query || {}).filter(([, value]) => value !== "" && value !== null && value !== undefined)).toString();
    return asked ? `${path}?${asked}` : path;
  };
  // The feature as a link: its number and, where there is one, its name.
  THRESHER.featureLink = (sae, table, feature) => {
    const name = table.label(feature);
    return h("a", { href: THRESHER.link("feature", sae, feature), class: "feature-link" },
      h("i", { class: "dot", style: `background:${table.color(feature)}` }),
      `#${feature}`, name ? h("small", { title: name }, " " + name) : null);
  };

  // Items of the site, by number: [key, picture] of images, strings of texts.
  const items = async (folder, size, numbers) => {
    const shards = [...new Set(numbers.map(number => Math.floor(number / size)))];
    const parts = await Promise.all(shards.map(shard => THRESHER.load(`${folder}/${String(shard).padStart(5, "0")}`)));
    const by = new Map(shards.map((shard, k) => [shard, parts[k]]));
    return new Map(numbers.map(number => [number, by.get(Math.floor(number / size))[number % size]]));
  };
  // What the rows of items stand for: [token ids, shape of the grid, cells, image in front]; null where items are single rows.
  THRESHER.rows = async (modality, numbers) => {
    if (!THRESHER.run.rows[modality]) return null;
    const known = await items(`rows-${modality}`, THRESHER.run.sizes.images, numbers);
    if ([...known.values()].some(one => one[0])) {
      const { ids, pieces } = await THRESHER.load("tokens");
      THRESHER.pieces = THRESHER.pieces || new Map(ids.map((id, k) => [id, pieces[k]]));
    }
    return known;
  };
  THRESHER.images = numbers => items("images", THRESHER.run.sizes.images, numbers);
  THRESHER.texts = numbers => items("texts", THRESHER.run.sizes.texts, numbers);
  THRESHER.picture = ([key, uri], note) =>
    uri ? h("img", { src: uri, alt: key, title: note ? `${key}, ${note}` : key, loading: "lazy" })
        : h("span", { class: "no-picture", title: note }, key);

  const tip = document.getElementById("tip");
  THRESHER.tip = (event, ...children) => {
    if (!event) { tip.hidden = true; return; }
    tip.replaceChildren(...children);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 8)) + "px";
  };
  THRESHER.setHash = hash => {
    try { history.replaceState(null, "", hash); } catch { location.replace(hash); }
  };
  // Width of a drawing that is `most` units wide where there is room: text in it keeps its size on a narrow screen.
  // Cards stand in two columns from 430 pixels each, see `.two`.
  THRESHER.fit = most => {
    const room = document.getElementById("main").clientWidth - (innerWidth > 700 ? 44 : 24), column = room < 878 ? room : (room - 18) / 2;
    return Math.max(280, Math.min(most, Math.round(column) - 34));
  };
  // As much of a text as fits, by a function that measures it; an ellipsis says that there is more.
  THRESHER.cut = (text, room, measure = one => 6.4 * one.length) => {
    if (measure(text) <= room) return text;
    const short = end => text.slice(0, end).trimEnd() + "\u2026";
    let fits = 1, not = text.length;
    while (not - fits > 1) { const middle = (fits + not) >> 1; if (measure(short(middle)) <= room) fits = middle; else not = middle; }
    return short(fits);
  };
  // What is missing where a store holds no pictures or no texts: then items are named by their keys.
  THRESHER.keysOnly = kinds => {
    const bare = kinds.filter(kind => !THRESHER.run.shows[kind]).map(kind => (kind === "image" ? "pictures" : "texts"));
    return bare.length ? h("p", { class: "soft small keys-only" }, `The store holds no ${bare.join(" and no ")}: items are named by their keys.`) : "";
  };
  // A panel of controls: label and input.
  THRESHER.field = (label, input) => h("label", { class: "field" }, h("span", {}, label), input);
  THRESHER.select = (options, value, onchange) => {
    const node = h("select", { onchange: () => onchange(node.value) }, options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)));
    return node;
  };
})();
