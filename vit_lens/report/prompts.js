(() => {
  const TYPE_WORDS = {
    resid_post: "residual after the block", resid_mid: "residual after attention", resid_pre: "residual before the block",
    attn: "attention output", mlp: "MLP output", head: "the head most like the prompt",
  };
  const state = { group: 0, type: "", seed: null, controls: false, row: null };

  // ---------------------------------------------------------------- which rows, and what is said of them
  const PROBES = DATA.beside ? Object.keys(DATA.beside.probes) : [];
  const amount = (key, row) => (R[key][row] === null ? "\u2013" : format(R[key][row]));
  // What every probe reads of a site, the n best answers.
  function probed(row, n) {
    return PROBES.flatMap((name) => {
      const found = answers("probes", name, row).slice(0, n).map(({ index, cosine }) => `${DATA.beside.answers[name][index]} ${format(cosine)}`);
      return found.length ? [el("span", { class: "probe", "data-probe": name, title: `probe ${name}`, text: (PROBES.length > 1 || n > 1 ? `${name}: ` : "") + found.join(", ") })] : [];
    });
  }
  // How many blocks have run at a residual; other parts stand in the column of the block that they are in.
  const column = (row) => (R.layer[row] === null ? null : R.type[row] === "resid_pre" ? R.layer[row] : R.layer[row] + 1);
  const isShown = (row, group) => R.group[row] === group && (state.seed === null || R.seed[row] === state.seed);
  const isOfType = (row) => R.type[row] === state.type || (state.type === "resid_post" && R.site[row] === "L0.resid_pre");
  const controlsOf = (group) => range(DATA.groups.length).filter((i) => DATA.groups[i].of === DATA.groups[group].id);
  const sitesOf = (number) => DATA.groups.map((g, i) => i).filter((i) => !DATA.groups[i].control && range(N).some((row) => R.group[row] === i && number(row)));

  // ---------------------------------------------------------------- prompts by layers
  function cells(image, group) {
    const found = new Map();
    for (const row of range(N)) {
      if (R.image[row] !== image || !isShown(row, group) || !isOfType(row)) continue;
      const at = column(row), old = found.get(at);
      if (old === undefined || (R.cos_lens_clean[row] ?? -2) > (R.cos_lens_clean[old] ?? -2)) found.set(at, row);
    }
    return found;
  }
  function button(row, alt) {
    const isRead = RESIDUALS.includes(R.type[row]) && R.cos_lens_clean[row] === 1 && !DATA.groups[R.group[row]].control;
    return el("button", { type: "button", class: isRead ? "cell read" : "cell", "data-row": row, "aria-pressed": String(row === state.row),
      title: isRead ? `${R.site[row]}: what the pipeline reads` : R.site[row], on: { click: () => choose(row) } },
    thumb(row, alt), el("span", { class: "amount", text: `${state.type === "head" ? `${R.site[row]} ` : ""}${amount("cos_lens_clean", row)}` }), ...probed(row, 1));
  }
  function drawLayers() {
    const own = [state.group, ...(state.controls ? controlsOf(state.group) : [])];
    const lines = DATA.images.flatMap((image) => own.map((group) => ({ image, group, cells: cells(image.index, group) })));
    const columns = [...new Set(lines.flatMap((line) => [...line.cells.keys()]))].sort((a, b) => a - b);
    const heading = (at) => (RESIDUALS.includes(state.type) ? (at === 0 ? "embedding" : `${at} block${at === 1 ? "" : "s"}`) : `layer ${at - 1}`);
    const head = el("tr", {}, el("th", {}), ...columns.map((at) => el("th", { scope: "col", text: heading(at) })));
    const body = lines.map((line) => {
      const control = DATA.groups[line.group].control, name = control ? `control: ${control}` : line.image.name;
      return el("tr", { class: control ? "control-row" : null }, el("th", { scope: "row", text: name }), ...columns.map((at) => {
        const row = line.cells.get(at);
        return el("td", {}, row === undefined ? null : button(row, `${line.image.name}${control ? `, control ${control}` : ""}, ${R.site[row]}`));
      }));
    });
    $("layers").replaceChildren(el("thead", {}, head), el("tbody", {}, ...body));
    $("lens-words").textContent = `${DATA.groups[state.group].words} Under each picture: ${NUMBERS.cos_lens_clean.meaning}.${
      PROBES.length ? " Below that: what a probe that was fitted at this very site reads there, and how sure it is." : ""}`;
  }

  // ---------------------------------------------------------------- the sites of a layer
  function choose(row) {
    state.row = row;
    for (const node of document.querySelectorAll(".cell")) node.setAttribute("aria-pressed", String(Number(node.dataset.row) === row));
    const at = column(row), image = DATA.images.find((one) => one.index === R.image[row]);
    const order = ["resid_pre", "resid_mid", "resid_post", "attn", "mlp", "head"];
    const rows = range(N).filter((other) => R.image[other] === R.image[row] && column(other) === at && (state.seed === null || R.seed[other] === state.seed))
      .sort((a, b) => order.indexOf(R.type[a]) - order.indexOf(R.type[b]) || (R.head[a] ?? 0) - (R.head[b] ?? 0) || R.group[a] - R.group[b]);
    $("layer-section").hidden = false;
    $("layer-title").textContent = at === 0 ? `The embedding of \u201c${image.name}\u201d` : `Layer ${at - 1} of \u201c${image.name}\u201d`;
    $("layer-words").textContent = `${rows.length} pictures of its sites and their controls; each opens in full size.`;
    $("sites").replaceChildren(...rows.map((other) => {
      const g = DATA.groups[R.group[other]], alt = `${R.site[other]}, ${groupName(g)}`;
      const seed = DATA.seeds.length > 1 ? `, seed ${R.seed[other]}` : "";
      const control = R.cos_lens_control[other] === null ? "" : `, random ${amount("cos_lens_control", other)}`;
      const leak = R.leak[other] === null ? "" : `leak ${amount("leak", other)}`;
      const picture = R.thumb[other] === null ? thumb(other, alt)
        : el("a", { href: original(other), target: "_blank", rel: "noopener", title: "open the original picture" }, thumb(other, alt));
      return el("figure", { "data-row": other }, picture, el("figcaption", {}, el("b", { text: R.site[other] }),
        el("span", { text: `${groupName(g)}${seed}; to the prompt ${amount("cos_lens_clean", other)}${control}`, title: NUMBERS.cos_lens_clean.meaning }),
        leak ? el("span", { class: "leak", text: leak, title: NUMBERS.leak.meaning }) : null, ...probed(other, 4)));
    }));
  }

  // ---------------------------------------------------------------- start
  function drawTypes() {
    const types = Object.keys(TYPE_WORDS).filter((type) => range(N).some((row) => R.group[row] === state.group && R.type[row] === type));
    if (!types.includes(state.type)) state.type = types[0] || "";
    fillSelect($("type"), types.map((type) => [type, TYPE_WORDS[type]]), state.type);
  }
  function drawAll() { drawTypes(); drawLayers(); if (state.row !== null) choose(state.row); }
  const readings = sitesOf(() => true);
  state.group = readings[0] || 0;
  state.seed = DATA.seeds.length > 1 ? DATA.seeds[0] : null;
  fillSelect($("lens"), readings.map((i) => [i, groupName(DATA.groups[i])]), state.group);
  fillSelect($("seed"), DATA.seeds.map((seed) => [seed, String(seed)]), state.seed);
  $("seed-control").hidden = DATA.seeds.length < 2;
  $("control-control").hidden = !DATA.groups.some((g) => g.control);
  $("lens").addEventListener("change", (event) => { state.group = Number(event.target.value); drawAll(); });
  $("type").addEventListener("change", (event) => { state.type = event.target.value; drawLayers(); });
  $("seed").addEventListener("change", (event) => { state.seed = Number(event.target.value); drawAll(); });
  $("with-controls").addEventListener("change", (event) => { state.controls = event.target.checked; drawLayers(); });
  $("layers").addEventListener("keydown", (event) => { const next = buttonBeside($("layers"), event, ".cell"); if (next) next.focus(); });
  drawAll();
  if (rowInAddress() !== null) choose(rowInAddress());
  document.documentElement.dataset.ready = Math.round(performance.now());
})();
