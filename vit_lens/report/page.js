(() => {
  const CONTROLS = Object.values(DATA.controls), LEAKS = CONTROLS.map((c) => c.leak);
  const LATER = CONTROLS.flatMap((c) => [c.cosine, c.leak]); // older records lack them, and a leak index needs means over other images
  const KEYS = Object.keys(NUMBERS).filter((key) => !LATER.includes(key) || R[key].some((value) => value !== null));
  const PAGE = 100;
  const TYPE_WORDS = {
    head: "heads", attn: "attention blocks", mlp: "MLPs",
    resid_pre: "before the block", resid_mid: "after its attention", resid_post: "after the block",
    pool_head: "heads of the pooling", pool_attn: "pooling attention", pool_mlp: "pooling MLP",
  };
  const state = { image: DATA.images.length ? DATA.images[0].index : 0, row: null, group: 0, shown: PAGE, sort: "", down: true };

  // ---------------------------------------------------------------- small helpers
  const partOf = (row) => R.type[row].replace("pool_", "");
  const layerOf = (row) => (R.layer[row] === null ? Infinity : R.layer[row]);
  const isResidual = (row) => RESIDUALS.includes(R.type[row]);
  const here = () => range(N).filter((row) => R.image[row] === state.image);
  const isMissing = (key, row) => (LEAKS.includes(key) && !isResidual(row) && !group(row).control
    ? (R.S_lens_clean[row] === null ? "undefined" : "not applicable") : "\u2013");
  const otherOf = (row) => (group(row).control === "other" ? (DATA.images.find((i) => i.index === R.image[row]) || {}).other : "");
  const controlName = (row) => `${group(row).control} control${otherOf(row) ? ` (${otherOf(row)})` : ""}`;
  const number = (key, row) => (R[key][row] === null ? isMissing(key, row) : format(R[key][row]));
  // The same site, drawn with every noise seed: the map shows the first, its verdict is that of their mean.
  const sameSite = (row) => `${R.image[row]} ${R.group[row]} ${R.site[row]}`, together = new Map();
  for (const row of range(N)) together.set(sameSite(row), (together.get(sameSite(row)) || []).concat(row));
  const isFirstSeed = (row) => together.get(sameSite(row))[0] === row;
  function overSeeds(key, row) {
    const values = together.get(sameSite(row)).map((other) => R[key][other]).filter((v) => v !== null);
    return values.length ? { n: values.length, mean: values.reduce((a, b) => a + b) / values.length,
      low: Math.min(...values), high: Math.max(...values) } : null;
  }
  const seedsWords = (d) => `${format(d.mean)} on average over ${d.n} noise seeds (${format(d.low)} to ${format(d.high)})`;
  const isLow = (value) => value !== null && value < DATA.threshold;
  const weakOne = (row) => isLow(R.faithfulness[row]);
  function weak(row) { const d = overSeeds("faithfulness", row); return d !== null && isLow(d.mean); }
  function verdictOf(row) {
    if (!hasPicture(row)) return DATA.drawn ? "No picture yet." : "No decoder, so no picture.";
    const d = overSeeds("faithfulness", row), below = `below ${format(DATA.threshold)}`, value = R.faithfulness[row];
    const told = value !== null && value < DATA.threshold && format(value) === format(DATA.threshold) ? value.toFixed(4) : number("faithfulness", row);
    if (weak(row)) return `The decoder could not draw this: faithfulness ${d.n > 1 ? `${seedsWords(d)}, ${below}` : `${told} is ${below}`}.`;
    return weakOne(row) ? `The decoder could not draw this with noise seed ${R.seed[row]}: faithfulness ${told} is ${below}; it is ${seedsWords(d)}.` : "";
  }
  function uncontrolled(row) {
    if (!DATA.drawn || group(row).control || isResidual(row)) return null;
    const others = CONTROLS.slice(1).filter((c) => R[c.cosine][row] !== null).map((c) => `${c.words} at ${number(c.cosine, row)}`);
    const known = R.cos_lens_control[row] === null ? "" : ` Before decoding, random directions of its size resemble the input at ${number("cos_lens_control", row)}, ${others.map((w) => `${w}, `).join("")}the site at ${number("cos_lens_clean", row)}.`;
    return el("p", { class: "site-words undrawn", text: `No control drawn (sweep with --controls).${known}` });
  }
  // Of a sweep within a budget: whether another row lends a picture.
  const lender = (row) => (R.same_as === null ? null : R.same_as[row]);
  const shortMarks = (row) => [isCoarse(row) ? "coarse" : "", lender(row) === null ? "" : `as ${R.site[lender(row)]}`].filter(Boolean);
  function marks(row) {
    const of = lender(row), words = [];
    if (isCoarse(row)) words.push(`Drawn coarsely (${DATA.budget.coarse}), not refined yet; the numbers are those of this picture.`);
    if (of !== null) {
      const image = R.image[of] === R.image[row] ? "" : ` of ${DATA.images.find((i) => i.index === R.image[of]).name}`;
      words.push(`Shares the picture of ${R.site[of]}${image}, ${groupName(group(of))}: the embeddings are all but equal (cosine at least ${DATA.budget.same_above}).`);
    }
    return words.join(" ");
  }
  const originalInput = (image) => `${DATA.base}inputs/${String(image).padStart(4, "0")}.png`;
  const mainNumber = () => (R.cos_input.some((v) => v !== null) ? "cos_input" : "cos_lens_clean");
  function siteWords(row) {
    const layer = R.layer[row];
    const words = {
      head: `head ${R.head[row]} of layer ${layer}`, attn: `attention output of layer ${layer}`, mlp: `MLP of layer ${layer}`,
      resid_pre: `residual stream before block ${layer}`, resid_mid: `residual stream after the attention of block ${layer}`,
      resid_post: `residual stream after block ${layer}`, pool_head: `head ${R.head[row]} of the attention pooling`,
      pool_attn: "attention output of the pooling", pool_mlp: "MLP of the pooling",
    };
    return words[R.type[row]] || R.site[row];
  }
  // ---------------------------------------------------------------- captions and nearest images of a row
  const neighbourName = (index) => DATA.beside.names[index];
  const neighbourFile = (index) => `${DATA.base}gallery/${String(index).padStart(6, "0")}.png`;
  const uri = (index) => DATA.beside.thumbs[index];
  function neighbour(index, alt) {
    return uri(index) === undefined ? el("span", { class: "empty", role: "img", "aria-label": alt })
      : el("img", { src: uri(index) || neighbourFile(index), alt, decoding: "async", loading: uri(index) ? null : "lazy" });
  }
  function best(what, row) { return (answers(what, "centred", row) || answers(what, "raw", row) || [])[0]; }
  function face(row) {
    const found = $("map-mode").value === "nearest" ? best("images", row) : null;
    return found ? neighbour(found.index, "") : thumb(row, "");
  }

  // ---------------------------------------------------------------- colour: one scale for all readings of an image
  function scaleOf(key) {
    const values = here().filter((row) => !isResidual(row)).map((row) => R[key][row]).filter((v) => v !== null);
    return Math.min(NUMBERS[key].cap || Infinity, Math.max(1e-9, ...values.map(Math.abs)));
  }
  function paint(node, key, row, scale) {
    const value = R[key][row];
    node.classList.toggle("negative", value !== null && value < 0);
    node.classList.toggle("unsigned", !NUMBERS[key].signed);
    node.style.setProperty("--t", value === null ? "0%" : `${Math.min(100, (100 * Math.abs(value)) / scale).toFixed(1)}%`);
  }

  // ---------------------------------------------------------------- residual strip
  function drawStrip() {
    const rows = here().filter((row) => isResidual(row) && group(row).lens === "diffusion" && !group(row).control && isFirstSeed(row));
    $("strip-section").hidden = !rows.length;
    const type = $("strip-type").value;
    const first = rows.filter((row) => R.type[row] === "resid_pre" && R.layer[row] === 0);
    let shown = rows.filter((row) => type === "all" || R.type[row] === type);
    if (type === "resid_post") shown = first.concat(shown);
    shown.sort((a, b) => R.layer[a] - R.layer[b] || RESIDUALS.indexOf(R.type[a]) - RESIDUALS.indexOf(R.type[b]));
    const key = mainNumber();
    $("strip-number").textContent = NUMBERS[key].meaning;
    const image = DATA.images.find((i) => i.index === state.image);
    const input = el("figure", { class: "tile input" }, inputLink(image), el("figcaption", { text: "input" }));
    $("strip").replaceChildren(input, ...shown.map((row) => {
      const button = siteButton(row, key, 1);
      const name = R.type[row] === "resid_pre" && R.layer[row] === 0 ? "start" : `L${R.layer[row]}`;
      const part = type === "all" && name !== "start" ? { resid_pre: " in", resid_mid: " mid", resid_post: " out" }[R.type[row]] : "";
      return el("figure", { class: "tile" }, button,
        el("figcaption", {}, el("span", { text: name + part }), el("b", { text: number(key, row) })));
    }));
    roving($("strip"));
  }
  function inputLink(image) {
    const picture = image && image.thumb !== null
      ? el("img", { src: image.thumb || originalInput(image.index), alt: `input: ${image.name}` })
      : el("span", { class: "empty", role: "img", "aria-label": "input: no picture" });
    return el("a", { href: originalInput(state.image), target: "_blank", rel: "noopener", title: image ? image.name : null }, picture);
  }

  // ---------------------------------------------------------------- head map
  function siteButton(row, key, scale, view) {
    const over = view === "map" && key === "faithfulness" ? overSeeds(key, row) : null;
    const value = over ? format(over.mean) : number(key, row);
    const said = marks(row);
    const words = `${R.site[row]}, ${groupName(group(row))}: ${NUMBERS[key].title} ${over && over.n > 1 ? seedsWords(over) : value}${said && `. ${said}`}`;
    const button = el("button", { type: "button", class: "cell", "data-row": row, tabindex: -1, title: words, "aria-label": words,
      on: { click: () => select(row, true) } }, view === "map" ? face(row) : thumb(row, ""), el("span", { class: "value", text: value }));
    button.classList.toggle("coarse", isCoarse(row));
    button.classList.toggle("shared", lender(row) !== null);
    button.classList.toggle("weak", weak(row) && !(view === "map" && $("map-mode").value === "nearest"));
    button.setAttribute("aria-pressed", String(row === state.row));
    paint(button, key, row, scale);
    return button;
  }
  function drawMap() {
    const key = $("map-number").value, scale = scaleOf(key);
    const rows = here().filter((row) => !isResidual(row) && R.group[row] === state.group);
    const layers = [...new Set(rows.map(layerOf))].sort((a, b) => a - b);
    const heads = [...new Set(rows.filter((row) => partOf(row) === "head").map((row) => R.head[row]))].sort((a, b) => a - b);
    const parts = ["attn", "mlp"].filter((type) => rows.some((row) => partOf(row) === type));
    const cells = new Map();
    for (const row of rows) {
      const place = `${layerOf(row)} ${partOf(row) === "head" ? R.head[row] : partOf(row)}`;
      if (!cells.has(place)) cells.set(place, row);
    }
    const columns = [...heads, ...parts];
    const map = $("map");
    $("map-section").hidden = !here().some((row) => !isResidual(row));
    map.className = `map ${$("map-mode").value === "colours" ? "colours" : "pictures"}`;
    map.style.setProperty("--heads", Math.max(1, heads.length));
    map.style.gridTemplateColumns = `auto ${"minmax(0,var(--cell)) ".repeat(heads.length)}` +
      (parts.length ? `${heads.length ? "0.6rem " : ""}${"minmax(0,var(--cell)) ".repeat(parts.length)}` : "");
    const gap = () => (heads.length && parts.length ? el("span", { class: "gap", role: "presentation" }) : null);
    const title = (c) => (c === "attn" ? "attn" : c === "mlp" ? "MLP" : String(c));
    const line = (first, items) => {
      const split = items.slice(0, heads.length).concat(gap() ? [gap()] : [], items.slice(heads.length));
      return el("div", { role: "row", class: "line" }, first, ...split);
    };
    const top = line(el("span", { role: "columnheader", class: "axis corner", text: "layer" }),
      columns.map((c) => el("span", { role: "columnheader", class: "axis", text: title(c),
        "aria-label": typeof c === "number" ? `head ${c}` : title(c) })));
    map.replaceChildren(top, ...layers.map((layer) => line(
      el("span", { role: "rowheader", class: "axis", text: layer === Infinity ? "pool" : layer,
        "aria-label": layer === Infinity ? "attention pooling" : `layer ${layer}` }),
      columns.map((column) => {
        const row = cells.get(`${layer} ${column}`);
        return el("div", { role: "gridcell" }, row === undefined ? el("span", { class: "hole" }) : siteButton(row, key, scale, "map"));
      }))));
    roving(map);
    const g = DATA.groups[state.group];
    $("map-words").textContent = g ? g.words : "";
    $("legend-low").textContent = NUMBERS[key].signed ? format(-scale) : "0";
    $("legend-high").textContent = format(scale);
    $("legend-bar").className = NUMBERS[key].signed ? "" : "unsigned";
    $("legend-title").textContent = `${NUMBERS[key].title}: ${NUMBERS[key].meaning}`;
  }

  // ---------------------------------------------------------------- keyboard: one tab stop per view, arrows move
  function roving(view) {
    const buttons = [...view.querySelectorAll("button.cell")];
    const chosen = buttons.find((b) => Number(b.dataset.row) === state.row) || buttons[0];
    if (chosen) chosen.tabIndex = 0;
  }
  function move(view, event) {
    const best = buttonBeside(view, event, "button.cell");
    if (best) { best.focus(); select(Number(best.dataset.row), false); }
  }

  // ---------------------------------------------------------------- the chosen site
  function select(row, byPointer) {
    state.row = row;
    for (const button of document.querySelectorAll("button.cell, tr[data-row]")) {
      const on = Number(button.dataset.row) === row;
      if (button.tagName === "TR") { button.classList.toggle("chosen", on); continue; }
      button.setAttribute("aria-pressed", String(on));
      const view = button.closest("#strip, #map");
      if (on && view) { view.querySelectorAll("button.cell").forEach((b) => { b.tabIndex = -1; }); button.tabIndex = 0; }
    }
    drawDetail(row);
    if (byPointer) document.body.classList.add("sheet-open");
    history.replaceState(null, "", `#row-${row}`);
  }
  function siblings(row) {
    return here().filter((other) => other !== row && R.site[other] === R.site[row]);
  }
  function controlsOf(row) {
    const g = group(row);
    return g.control ? [] : siblings(row).filter((other) => group(other).of === g.id).sort((a, b) => (R.seed[a] !== R.seed[row]) - (R.seed[b] !== R.seed[row]));
  }
  const seedWords = (row) => (DATA.seeds.length > 1 && R.seed[row] !== null ? `, seed ${R.seed[row]}` : "");
  function small(row, caption) {
    return el("button", { type: "button", class: "small", on: { click: () => select(row, true) } }, rowPicture(row),
      el("span", { text: caption }), el("b", { text: number(mainNumber(), row) }));
  }
  function drawDetail(row) {
    const g = group(row), controls = controlsOf(row);
    const others = siblings(row).filter((other) => !controls.includes(other))
      .sort((a, b) => (R.group[a] !== R.group[row]) - (R.group[b] !== R.group[row]));  // other noise seeds of this reading first
    const image = DATA.images.find((i) => i.index === state.image);
    const kinds = new Set(controls.map((c) => group(c).control)).size;
    const shownControls = controls.slice(0, Math.max(2, kinds));  // of every kind one, those of this noise seed first
    const close = el("button", { type: "button", class: "close", "aria-label": "close", text: "\u00d7",
      on: { click: () => document.body.classList.remove("sheet-open") } });
    const verdict = verdictOf(row);
    const warning = el("p", { class: "verdict", hidden: !verdict, text: verdict });
    const both = twoDecoders(row);
    const shown = DATA.beside ? [compare(row, controls[0], warning, both)] : [bigPicture(row), warning, both];
    $("detail").classList.toggle("beside", Boolean(DATA.beside));
    $("detail").replaceChildren(...[close,
      el("h3", { text: R.site[row] }),
      el("p", { class: "site-words", text: `${siteWords(row)}${seedWords(row)}` }),
      el("p", { class: "reading", text: groupName(g) }),
      marks(row) ? el("p", { class: "marks", text: marks(row) }) : null,
      ...shown, controls.length ? null : uncontrolled(row),
      el("div", { class: "companions" },
        el("div", { class: "small" }, inputLink(image), el("span", { text: "input" })),
        g.anchor_thumb ? el("div", { class: "small" }, el("img", { src: g.anchor_thumb, alt: `anchor: ${g.anchor}` }), el("span", { text: "anchor: what is changed" })) : null,
        ...shownControls.slice(DATA.beside ? 1 : 0).map((c) => small(c, `${controlName(c)}${seedWords(c)}`)),
        ...others.slice(0, 4 - Math.min(2, controls.length)).map((o) => small(o, R.group[o] === R.group[row] ? `with seed ${R.seed[o]}` : groupName(group(o)) + seedWords(o)))),
      R.label[row] ? el("p", { class: "label" }, "Zero-shot label of the picture: ", el("b", { text: R.label[row] })) : null,
      numbersList(row, controls[0]),
      DATA.left_out && !isResidual(row) ? el("p", { class: "definition", text: DATA.left_out }) : null,
      el("p", { class: "definition", text: `Settings: ${g.settings}` })].filter((part) => part !== null));
  }
  // What two decoders drew of the same embedding, and whether that is more alike than pictures of other sites.
  function agreementWords(row) {
    const S = DATA.second, value = S.agreement[row], n = S.n[row];
    if (S.thumb[row] === null) return ["", "The second decoder has not drawn this yet."];
    if (value === null) return ["", S.is_part ? "A part of a sweep: how much the decoders agree is known once its parts are merged." : "The pictures have not been compared yet."];
    if (!n) return ["", `Two decoders: ${format(value)}. There are no mismatched sites to hold that against.`];
    const numbers = `${format(value)}; mismatched sites ${format(S.null[row])}`;
    if (n < S.least) return ["", `Two decoders: ${numbers}. Too few mismatched sites (${n}) to say more.`];
    const above = (value - S.null[row]) / (1 - S.null[row]);
    if (S.p[row] <= S.agrees) return ["agree", `Two decoders agree${above < S.wholly ? " in part" : ""} (${numbers}).`];
    if (S.p[row] >= S.disagrees) return ["disagree", `The decoders disagree (${numbers}): what is seen here one of them made up.`];
    return ["", `The decoders do not clearly agree about this site (${numbers}).`];
  }
  function twoDecoders(row) {
    const S = DATA.second;
    if (!S || !hasPicture(row)) return null;
    const file = `${S.base}pictures/${String(row).padStart(6, "0")}.png`;
    const own = el("a", { href: original(row), target: "_blank", rel: "noopener" }, thumb(row, `drawn by ${S.names[0]}`));
    const other = S.thumb[row] === null ? el("span", { class: "empty", role: "img", "aria-label": `${S.names[1]}: no picture` })
      : el("a", { href: file, target: "_blank", rel: "noopener" }, el("img", { src: S.thumb[row] || file, alt: `drawn by ${S.names[1]}`, decoding: "async" }));
    const [verdict, words] = agreementWords(row);
    const rank = S.p[row] === null ? "" : ` Rank p ${format(S.p[row])} among ${S.n[row]} mismatched sites.`;
    return el("div", { class: `twice ${verdict}` },
      ...[own, other].map((picture, i) => el("div", { class: "small" }, picture, el("span", { text: S.names[i] }))),
      el("p", { class: "said-of-both" }, el("b", { text: words }), el("span", { text: `Seen by ${S.judge}.${rank}` })));
  }
  // A site beside its control: pictures, nearest images and captions, each in both forms.
  function compare(row, control, warning, both) {
    const pair = control === undefined ? [row] : [row, control];
    const grid = el("div", { class: `compare${pair.length === 1 ? " alone" : ""}` });
    const head = (at) => (at === row ? el("p", { class: "side", text: group(row).control ? "this control" : "this site" })
      : el("button", { type: "button", class: "side link", text: controlName(at), on: { click: () => select(at, true) } }));
    grid.append(...pair.map(head));
    if (DATA.drawn) {
      grid.append(...pair.map((at) => (at === row ? bigPicture(at) : el("button", { type: "button", class: "small", on: { click: () => select(at, true) } },
        thumb(at, ""), el("span", { class: "unseen", text: `${group(at).control} control` })))));
      grid.append(warning, ...pair.map((at) => el("p", { class: "score", text: `${NUMBERS[mainNumber()].title} ${number(mainNumber(), at)}` })));
      if (both) grid.append(both);
    }
    const WORDS = { images: "Nearest images", captions: "Captions" };
    for (const what of ["images", "captions"]) {
      for (const form of ["raw", "centred", "averaged"]) {
        const lists = pair.map((at) => answers(what, form, at));
        if (!lists[0] || (form === "averaged" && !lists[0].length)) continue;
        const title = { raw: "of the embedding as it is", centred: `less ${DATA.beside.means}`, averaged: "cosines averaged over the anchors" }[form];
        grid.append(el("h4", {}, `${WORDS[what]}, ${form} `, el("small", { text: title })));
        const shared = lists.length > 1 ? new Set(lists[0].map((a) => a.index).filter((i) => lists[1].some((b) => b.index === i))) : new Set();
        grid.append(...lists.map((list) => (what === "images" ? pictureList(list, shared) : captionList(list, shared))));
      }
    }
    return grid;
  }
  const sharedWords = (on) => (on ? ": the control has it too" : "");
  function pictureList(list, shared) {
    if (!list.length) return nothingLeft();
    return el("ol", { class: "near" }, ...list.map(({ index, cosine }) => {
      const name = neighbourName(index), words = `${name}, cosine ${format(cosine)}${sharedWords(shared.has(index))}`;
      return el("li", { class: shared.has(index) ? "shared" : null, title: words, "data-index": index }, 
        uri(index) === undefined ? neighbour(index, words)
          : el("a", { href: neighbourFile(index), target: "_blank", rel: "noopener" }, neighbour(index, words)),
        el("span", { text: format(cosine) }));
    }));
  }
  function captionList(list, shared) {
    if (!list.length) return nothingLeft();
    return el("ol", { class: "said" }, ...list.map(({ index, cosine }) => el("li", { class: shared.has(index) ? "shared" : null,
      title: shared.has(index) ? "the control has it too" : null, "data-index": index },
    el("span", { text: DATA.texts.captions[index] }), el("b", { text: format(cosine) }))));
  }
  function nothingLeft() { return el("p", { class: "nothing", text: "None: there are no means for this reading, or nothing differs from them." }); }
  function bigPicture(row) {
    if (!hasPicture(row)) return el("span", { class: "empty big", role: "img", "aria-label": `${R.site[row]}: no picture` });
    const words = `${R.site[row]}, ${groupName(group(row))}: decoded picture`;
    const picture = el("img", { src: original(row), alt: words, class: "big" });
    picture.addEventListener("error", () => { if (R.thumb[row]) picture.src = R.thumb[row]; }, { once: true });
    return el("a", { href: original(row), target: "_blank", rel: "noopener", title: "open the original picture" }, picture);
  }
  function numbersList(row, control) {
    return el("dl", { class: "numbers" }, ...KEYS.map((key) => {
      const shown = el("dd", { class: "amount", "data-key": key, text: number(key, row) });
      const beside = control === undefined || R[key][control] === null ? ""
        : ` Its control: ${number(key, control)}.`;
      const over = key === "faithfulness" ? overSeeds(key, row) : null;
      const ends = CONTROLS.find((c) => c.leak === key);
      const interval = ends && R[ends.low][row] !== null ? ` Interval over draws: ${format(R[ends.low][row])} to ${format(R[ends.high][row])}.` : "";
      const seeds = over && over.n > 1 ? ` It is ${seedsWords(over)}.` : "";
      return el("div", {}, el("dt", { text: NUMBERS[key].title }), shown,
        el("dd", { class: "meaning", text: `${NUMBERS[key].meaning}.${beside}${interval}${seeds}` }));
    }));
  }

  // ---------------------------------------------------------------- sortable, filterable rows
  function matching() {
    const text = $("f-text").value.trim().toLowerCase(), lens = $("f-lens").value, type = $("f-type").value;
    const from = $("f-from").value === "" ? -Infinity : Number($("f-from").value);
    const to = $("f-to").value === "" ? Infinity : Number($("f-to").value);
    const rows = here().filter((row) => {
      const g = group(row);
      if (lens === "sites" ? g.control : lens === "controls" ? !g.control : lens !== "all" && R.group[row] !== Number(lens)) return false;
      if (type !== "all" && R.type[row] !== type) return false;
      if (R.layer[row] !== null && (R.layer[row] < from || R.layer[row] > to)) return false;
      return !text || `${R.site[row]} ${groupName(g)} ${R.label[row]} ${siteWords(row)} ${caption(row)}`.toLowerCase().includes(text);
    });
    const sign = state.down ? -1 : 1, column = state.sort;
    const value = (row) => (column === "site" || column === "order" ? row : column === "reading" ? groupName(group(row)) : R[column][row]);
    return rows.sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === null || y === null || x === "" || y === "") return (x === null || x === "") - (y === null || y === "") || a - b;
      return (typeof x === "string" ? x.localeCompare(y) : x - y) * sign || a - b;
    });
  }
  function caption(row) {
    const found = best("captions", row);
    return found ? DATA.texts.captions[found.index] : "";
  }
  function sortBy(column) {
    state.down = column === state.sort ? !state.down : KEYS.includes(column);
    state.sort = column;
    if (KEYS.includes(column) || column === "site") $("f-sort").value = column;
    drawRows();
  }
  function drawRows() {
    const rows = matching(), shown = rows.slice(0, state.shown);
    $("count").textContent = `${rows.length} of ${here().length} rows`;
    $("rows").replaceChildren(!rows.length ? el("p", { class: "hint", text: "Nothing fits these filters." })
      : $("f-view").value === "table" ? rowTable(shown) : gallery(shown));
    $("more").hidden = rows.length <= state.shown;
    $("more").textContent = `Show more (${rows.length - shown.length} left)`;
  }
  function rowTable(rows) {
    const labels = R.label.some((label) => label);
    const columns = [["site", "Site"], ["reading", "Reading"], ...(R.drawn ? [["drawn", "Drawn"]] : []), ...KEYS.map((key) => [key, NUMBERS[key].title]),
      ...(labels ? [["label", "Label"]] : []), ...(R.caption ? [["caption", "Nearest caption"]] : []), ...(DATA.seeds.length > 1 ? [["seed", "Seed"]] : [])];
    const head = columns.map(([key, text]) => el("th", { scope: "col", class: KEYS.includes(key) ? "num" : null,
      "aria-sort": state.sort === key ? (state.down ? "descending" : "ascending") : "none" },
    el("button", { type: "button", "data-sort": key, text, on: { click: () => sortBy(key) } })));
    const body = rows.map((row) => el("tr", { "data-row": row, class: row === state.row ? "chosen" : null,
      on: { click: () => select(row, true) } },
    el("td", { class: "pic" }, rowPicture(row)),
    ...columns.map(([key]) => el("td", { class: KEYS.includes(key) ? "num" : key === "label" || key === "caption" ? "words" : null },
      cellOf(key, row)))));
    return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" },
      el("span", { class: "unseen", text: "Picture" })), ...head)), el("tbody", {}, ...body)));
  }
  function rowPicture(row) {
    const found = DATA.drawn ? null : best("images", row);
    return found ? neighbour(found.index, `nearest: ${neighbourName(found.index)}`) : thumb(row, "");
  }
  function cellOf(key, row) {
    if (key === "site") {
      return el("button", { type: "button", class: "link", text: R.site[row],
        on: { click: (event) => { event.stopPropagation(); select(row, true); } } });
    }
    if (key === "reading") return groupName(group(row));
    if (key === "drawn") return el("span", { title: marks(row) || null, text: shortMarks(row).join(", ") || R.drawn[row] });
    if (KEYS.includes(key)) return el("span", { class: key === "faithfulness" && weakOne(row) ? "low" : null, text: number(key, row) });
    return R[key][row] === null ? "" : String(R[key][row]);
  }
  function gallery(rows) {
    const key = KEYS.includes(state.sort) ? state.sort : mainNumber(), scale = scaleOf(key);
    return el("div", { class: "gallery" }, ...rows.map((row) => el("figure", { class: "tile" }, siteButton(row, key, scale),
      el("figcaption", {}, el("span", { text: R.site[row] }), el("b", { text: number(key, row) })))));
  }

  // ---------------------------------------------------------------- start
  function drawImages() {
    const nav = $("images");
    nav.hidden = DATA.images.length < 2;
    nav.replaceChildren(...DATA.images.map((image) => el("button", { type: "button", title: image.name,
      "aria-pressed": String(image.index === state.image), "aria-label": `input ${image.name}`,
      on: { click: () => chooseImage(image.index) } },
    image.thumb === null ? el("span", { class: "empty" }) : el("img", { src: image.thumb || originalInput(image.index), alt: "" }),
    el("span", { text: image.name }))));
  }
  function chooseImage(index) {
    const old = state.row;
    state.image = index;
    const same = old === null ? undefined
      : here().find((row) => R.site[row] === R.site[old] && R.group[row] === R.group[old] && R.seed[row] === R.seed[old]);
    drawAll();
    const start = same === undefined ? firstRow() : same;
    if (start !== undefined) select(start, false); else $("detail").replaceChildren();
  }
  function firstRow() {
    const key = mainNumber();
    const rows = here().filter((row) => R.group[row] === state.group && !isResidual(row));
    const known = rows.filter((row) => R[key][row] !== null && hasPicture(row)).sort((a, b) => R[key][b] - R[key][a]);
    return known.concat(rows, here())[0];
  }
  function drawAll() { drawImages(); drawStrip(); drawMap(); drawRows(); live.draw(state.image); }
  function prepare() {
    const onMap = new Set(range(N).filter((row) => !isResidual(row)).map((row) => R.group[row]));
    const groups = DATA.groups.map((g, i) => [i, groupName(g)]);
    const steering = groups.find(([i]) => onMap.has(i) && DATA.groups[i].lens !== "diffusion" && !DATA.groups[i].control);
    state.group = steering ? steering[0] : onMap.size ? [...onMap][0] : 0;
    fillSelect($("map-lens"), groups.filter(([i]) => onMap.has(i)), state.group);
    fillSelect($("map-number"), KEYS.map((key) => [key, NUMBERS[key].title]), mainNumber());
    const pictures = R.thumb.some((uri) => uri !== null), near = DATA.beside && Object.keys(DATA.beside.names).length > 0;
    if (DATA.texts && DATA.beside && DATA.beside.captions.raw) R.caption = range(N).map(caption);
    fillSelect($("map-mode"), [...(pictures ? [["pictures", "pictures"]] : []), ...(near ? [["nearest", "nearest images"]] : []),
      ["colours", "numbers"]], pictures ? "pictures" : near ? "nearest" : "colours");
    const types = RESIDUALS.filter((type) => R.type.includes(type));
    fillSelect($("strip-type"), [...types].reverse().map((type) => [type, TYPE_WORDS[type]]).concat([["all", "every point"]]));
    $("strip-control").hidden = types.length < 2;
    fillSelect($("f-lens"), [["sites", "all, without controls"], ["controls", "controls only"], ["all", "all"], ...groups], "sites");
    const present = Object.keys(TYPE_WORDS).filter((type) => R.type.includes(type));
    fillSelect($("f-type"), [["all", "all"], ...present.map((type) => [type, TYPE_WORDS[type]])]);
    fillSelect($("f-sort"), [...KEYS.map((key) => [key, NUMBERS[key].title]), ["site", "Order in the network"]], mainNumber());
    state.sort = mainNumber();
    const layers = R.layer.filter((layer) => layer !== null);
    if (layers.length) $("f-from").placeholder = Math.min(...layers), $("f-to").placeholder = Math.max(...layers);
  }
  function listen() {
    const again = () => { state.shown = PAGE; drawRows(); };
    $("strip-type").addEventListener("change", drawStrip);
    $("map-lens").addEventListener("change", (event) => {
      state.group = Number(event.target.value);
      drawMap();
      const old = state.row;
      const same = old === null ? undefined : here().find((row) => R.site[row] === R.site[old] && R.group[row] === state.group);
      if (same !== undefined) select(same, false);
    });
    for (const id of ["map-number", "map-mode"]) $(id).addEventListener("change", drawMap);
    for (const id of ["f-text", "f-from", "f-to"]) $(id).addEventListener("input", again);
    for (const id of ["f-lens", "f-type", "f-view"]) $(id).addEventListener("change", again);
    $("f-sort").addEventListener("change", (event) => {
      state.sort = event.target.value; state.down = KEYS.includes(state.sort); again();
    });
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("filters").addEventListener("reset", () => setTimeout(() => { state.sort = $("f-sort").value; state.down = KEYS.includes(state.sort); again(); }));
    $("more").addEventListener("click", () => { state.shown += 3 * PAGE; drawRows(); });
    for (const id of ["strip", "map"]) $(id).addEventListener("keydown", (event) => move($(id), event));
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") document.body.classList.remove("sheet-open"); });
  }
  const live = livePanel(DATA, $, el);
  prepare();
  listen();
  const linked = rowInAddress();
  if (linked !== null) state.image = R.image[linked];
  drawAll();
  const start = linked === null ? firstRow() : linked;
  if (start !== undefined) select(start, false);
  document.documentElement.dataset.ready = Math.round(performance.now());
})();
