"use strict";
// Which view is shown, keys, theme.
(() => {
  const { h, link } = THRESHER;
  const main = document.getElementById("main"), nav = document.getElementById("nav"), pick = document.getElementById("sae");
  const EVERY = [["overview", "Overview"], ["features", "Features"], ["bridge", "Bridges"], ["map", "Map"], ["pairs", "Pairs"], ["find", "Retrieval"], ["compare", "Compare"]];
  // Bridges and pairs are between two modalities, of features that were judged.
  const CROSSED = new Set(["bridge", "pairs", "find"]), list = () => EVERY.filter(([view]) => !THRESHER.isSingle || !CROSSED.has(view));
  const ALONE = new Set(["overview", "compare", "words"]);
  let listen = null, turn = 0, shown = "";

  const parse = () => {
    const [path, asked] = location.hash.replace(/^#\/?/, "").split("?"), parts = (path || "overview").split("/").map(part => { try { return decodeURIComponent(part); } catch { return part; } });
    return { view: parts[0], sae: parts[1], id: parts[2], query: new URLSearchParams(asked || "") };
  };

  const show = async () => {
    const route = parse(), mine = ++turn, { order } = THRESHER.run;
    if (!ALONE.has(route.view)) route.sae = order.includes(route.sae) ? route.sae : pick.value || order[0];
    if (route.sae) pick.value = route.sae;
    document.querySelector(".pick").classList.toggle("off", ALONE.has(route.view) || order.length < 2);
    nav.replaceChildren(...list().map(([view, title]) => h("a", { href: link(view, ALONE.has(view) ? null : pick.value), "aria-current": view === route.view || (view === "features" && route.view === "feature") ? "page" : null }, title)));
    nav.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
    THRESHER.tip(null);
    // Drawn aside and put in place whole: a slower view that was left never overwrites its follower.
    const page = h("div", { class: `view view-${route.view}` });
    document.title = `${route.view} ${route.sae || ""} ${route.id || ""}`.trim() + " - thresher";
    let keys = null;
    try {
      const draw = THRESHER.views[route.view];
      if (!draw || (THRESHER.isSingle && CROSSED.has(route.view))) throw new Error(`There is no page ${route.view}`);
      if (!ALONE.has(route.view)) page.dataset.sae = route.sae;
      const stage = { append: (...nodes) => { if (mine === turn) { page.append(...nodes); main.replaceChildren(page); } } };
      keys = await draw(stage, route);
    } catch (error) {
      if (mine !== turn) return;
      page.replaceChildren(h("p", { class: "warn", role: "alert" }, error.message));
      main.replaceChildren(page);
    }
    if (mine !== turn) return;
    listen = typeof keys === "function" ? keys : null;
    if (shown !== location.hash.split("?")[0]) { if (!document.activeElement || document.activeElement === document.body) main.focus({ preventScroll: true }); scrollTo(0, 0); }
    shown = location.hash.split("?")[0];
    main.dataset.ready = route.view;
  };
  addEventListener("hashchange", () => { delete main.dataset.ready; show(); });
  document.getElementById("skip").addEventListener("click", event => { event.preventDefault(); main.focus(); });
  pick.addEventListener("change", () => { const { view } = parse(); location.hash = link(ALONE.has(view) ? "features" : view === "feature" ? "features" : view, pick.value); });

  const help = document.getElementById("help");
  document.getElementById("help-open").addEventListener("click", () => help.showModal());
  document.getElementById("help-words").addEventListener("click", () => help.close());
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || help.open) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (typing) return;
    if (event.key === "?") { help.showModal(); return; }
    if (event.key === "/") {
      event.preventDefault();
      const search = document.getElementById("search");
      if (search) search.focus(); else { location.hash = link("features", pick.value); addEventListener("hashchange", focusSearch, { once: true }); }
      return;
    }
    // Arrows scroll whatever has the focus; only a page itself gives them to its view.
    if (listen && event.target.tagName !== "CANVAS" && listen(event.key)) event.preventDefault();
  });
  const focusSearch = () => {
    const seen = new MutationObserver(() => { const search = document.getElementById("search"); if (search) { seen.disconnect(); search.focus(); } });
    seen.observe(main, { childList: true, subtree: true });
  };

  const theme = document.getElementById("theme"), THEMES = ["auto", "dark", "light"], NAMES = { auto: "\u25d0", dark: "\u25cf", light: "\u25cb" };
  const remember = value => { try { if (value === undefined) return localStorage.getItem("thresher-theme"); localStorage.setItem("thresher-theme", value); } catch { /* a page from disk may have no storage */ } return null; };
  const dress = name => {
    if (name === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = name;
    theme.textContent = NAMES[name];
    theme.title = theme.ariaLabel = `Colour theme: ${name}`;
    document.dispatchEvent(new Event("themechange"));
  };
  let current = THEMES.includes(remember()) ? remember() : "auto";
  theme.addEventListener("click", () => { current = THEMES[(THEMES.indexOf(current) + 1) % 3]; remember(current); dress(current); show(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new Event("themechange")));
  dress(current);

  THRESHER.load("run").then(run => {
    pick.append(...run.order.map(name => h("option", { value: name }, name)));
    show();
  }).catch(error => main.replaceChildren(h("p", { class: "warn", role: "alert" }, error.message)));
})();
