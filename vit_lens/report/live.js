"use strict";
// The live panel. vit_lens/records/live.py does the same sums in Python; the tests hold one against the other.
const livePanel = (DATA, $, el) => {
  const LIVE = DATA.live, TEXTS = DATA.texts;
  if (!LIVE) return { draw() {} };
  const decode = (text) => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Float32Array(bytes.buffer);
  };
  const factors = new Map(), decoded = new Map();
  const parts = LIVE.labels.map((label) => {
    const head = /^(L\d+)H(\d+)$/.exec(label);
    return head ? { own: label, block: `${head[1]}.attn` } : { own: label.replace(".b_O", ".attn"), block: null };
  });
  const layers = [...new Set(LIVE.labels.map((label) => /^L(\d+)\./.exec(label)).filter(Boolean).map((m) => Number(m[1])))];
  const nHeads = LIVE.labels.filter((label) => /^L0H/.test(label)).length;
  const factor = (site) => (factors.has(site) ? factors.get(site) : 1);
  let image = null, target = null;
  const unit = TEXTS && TEXTS.unit ? decode(TEXTS.unit) : null;

  // ---------------------------------------------------------------- arithmetic
  function numbersOf(index) {
    if (!decoded.has(index)) {
      const found = {};
      for (const [name, text] of Object.entries(LIVE.images[index])) found[name] = decode(text);
      decoded.set(index, found);
    }
    return decoded.get(index);
  }
  function embed(numbers) {
    const n = parts.length, d = numbers.embedding.length, changed = [], delta = new Float64Array(n);
    parts.forEach((part, i) => {
      delta[i] = factor(part.own) * (part.block ? factor(part.block) : 1) - 1;
      if (delta[i] !== 0) changed.push(i);
    });
    const out = new Float64Array(d);
    for (let k = 0; k < d; k++) out[k] = numbers.embedding[k] - numbers.constant[k];
    for (const i of changed) for (let k = 0; k < d; k++) out[k] += delta[i] * numbers.contributions[i * d + k];
    let ratio = 1;
    if (LIVE.recomputed) {
      let after = numbers.variance[0];
      for (const i of changed) {
        after += 2 * delta[i] * numbers.along[i];
        for (const j of changed) {
          const [a, b] = i < j ? [i, j] : [j, i];
          after += delta[i] * delta[j] * numbers.gram[a * n - (a * (a - 1)) / 2 + b - a];
        }
      }
      ratio = Math.sqrt(numbers.variance[0] / Math.max(after, LIVE.eps));
    }
    for (let k = 0; k < d; k++) out[k] = ratio * out[k] + numbers.constant[k];
    return out;
  }
  function cosine(a, b) {
    let ab = 0, aa = 0, bb = 0;
    for (let k = 0; k < a.length; k++) { ab += a[k] * b[k]; aa += a[k] * a[k]; bb += b[k] * b[k]; }
    return ab / Math.sqrt(aa * bb);
  }
  function probabilities(embedding, members) {
    const d = embedding.length;
    const logits = members.map((t) => TEXTS.scale * cosine(embedding, unit.subarray(t * d, (t + 1) * d)) + (TEXTS.bias || 0));
    if (TEXTS.bias !== null) return logits.map((x) => 1 / (1 + Math.exp(-x)));
    const top = Math.max(...logits), powers = logits.map((x) => Math.exp(x - top));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((x) => x / sum);
  }

  // ---------------------------------------------------------------- what can be scaled
  const name = (site) => (site === "start" ? "tokens and positions" : site);
  const TARGETS = new Map();
  const target_of = (key, words, sites) => { TARGETS.set(key, { key, words, sites }); return key; };
  const heads = (layer) => Array.from({ length: nHeads }, (_, h) => `L${layer}H${h}`);
  target_of("heads", "all heads", layers.flatMap(heads));
  target_of("attn", "all attention blocks", layers.map((l) => `L${l}.attn`));
  target_of("mlp", "all MLPs", layers.map((l) => `L${l}.mlp`));
  for (const l of layers) {
    target_of(`layer ${l}`, `all of layer ${l}`, [`L${l}.attn`, `L${l}.mlp`]);
    for (const site of [...heads(l), `L${l}.attn`, `L${l}.mlp`]) target_of(site, site, [site]);
  }
  for (const site of ["start", "pool.mlp"]) if (LIVE.labels.includes(site)) target_of(site, name(site), [site]);

  function say(value) {
    const text = String(Math.round(Math.abs(value) * 100) / 100);
    return value < 0 && Number(text) !== 0 ? `\u2212${text}` : text;
  }
  function set(key, value) {
    for (const site of TARGETS.get(key).sites) if (value === 1) factors.delete(site); else factors.set(site, value);
  }
  function common(key) {
    const values = new Set(TARGETS.get(key).sites.map(factor));
    return values.size === 1 ? [...values][0] : null;
  }
  function toggle(key) { target = key; set(key, common(key) === 0 ? 1 : 0); update(); }
  function aim(key) { target = key; update(); }

  // ---------------------------------------------------------------- the grid
  function cell(key, words, text) {
    const button = el("button", { type: "button", class: text === undefined ? "dial" : "dial axis-button", "data-part": key,
      tabindex: -1, "data-words": words, on: { click: () => toggle(key) } });
    if (text !== undefined) button.textContent = text;
    return button;
  }
  function line(...children) {
    return el("div", { role: "row", class: "line" }, ...children.map((c) => (c.getAttribute("role") ? c : el("div", { role: "gridcell" }, c))));
  }
  function build() {
    const map = $("live-map"), header = (text) => el("span", { role: "columnheader", class: "axis", text });
    map.style.gridTemplateColumns = `max-content repeat(${nHeads}, minmax(1.45rem, 2.6rem)) 0.4rem repeat(2, minmax(2.3rem, 3rem))`;
    const gap = () => el("span", { class: "gap", role: "presentation" });
    const wide = cell("heads", "all heads", "all heads");
    const head = el("div", { role: "row", class: "line" }, el("span", { role: "columnheader", class: "axis corner", text: "layer" }),
      el("div", { role: "gridcell", class: "span-heads" }, wide), gap(),
      el("div", { role: "gridcell" }, cell("attn", "all attention blocks", "attn")), el("div", { role: "gridcell" }, cell("mlp", "all MLPs", "MLP")));
    head.children[1].style.gridColumn = `span ${nHeads}`;
    const rows = layers.map((l) => line(cell(`layer ${l}`, `all of layer ${l}`, String(l)),
      ...heads(l).map((site) => cell(site, site)), gap(), cell(`L${l}.attn`, `L${l}.attn`), cell(`L${l}.mlp`, `L${l}.mlp`)));
    map.replaceChildren(head, ...rows);
    const others = ["start", "pool.mlp"].filter((site) => TARGETS.has(site));
    $("live-others").replaceChildren(...others.map((site) => {
      const button = cell(site, name(site), name(site));
      button.tabIndex = 0;
      return button;
    }));
    map.querySelector(".dial").tabIndex = 0;
    map.addEventListener("keydown", (event) => {
      const next = buttonBeside(map, event, ".dial");
      if (!next) return;
      for (const b of map.querySelectorAll(".dial")) b.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
      aim(next.dataset.part);
    });
    map.addEventListener("focusin", (event) => {
      for (const b of map.querySelectorAll(".dial")) b.tabIndex = b === event.target ? 0 : -1;
    });
  }
  function paint() {
    for (const button of document.querySelectorAll("#live-section .dial")) {
      const key = button.dataset.part, value = common(key), head = /^(L\d+)H/.exec(key);
      const silenced = head && factor(`${head[1]}.attn`) === 0;
      button.classList.toggle("off", value === 0 || Boolean(silenced));
      button.classList.toggle("louder", value !== null && value > 1);
      button.classList.toggle("quieter", value !== null && value > 0 && value < 1);
      button.classList.toggle("negative", value !== null && value < 0);
      button.classList.toggle("aimed", key === target);
      button.setAttribute("aria-pressed", String(value !== 0));
      const words = `${button.dataset.words}: ${value === null ? "different factors" : `times ${say(value)}`}`;
      button.setAttribute("aria-label", silenced ? `${words}, its attention block is off` : words);
      button.title = words;
      if (!button.classList.contains("axis-button")) button.textContent = value === 1 ? "" : say(value);
    }
  }

  // ---------------------------------------------------------------- results
  const percent = (p) => (p >= 0.9995 ? "100" : p < 0.0005 ? "0" : (100 * p).toFixed(p < 0.1 ? 1 : 0));
  function bar(now, before) {
    const track = el("span", { class: "track", "aria-hidden": "true" }, el("i", {}), el("b", {}));
    track.children[0].style.width = `${Math.max(0, Math.min(100, 100 * now)).toFixed(2)}%`;
    track.children[1].style.left = `${Math.max(0, Math.min(100, 100 * before)).toFixed(2)}%`;
    return track;
  }
  // "a red object", "a blue object": the heading says "a ... object" once, and the lines what differs.
  function shorten(members) {
    const words = members.map((t) => TEXTS.captions[t].split(" ")), shortest = Math.min(...words.map((w) => w.length));
    let front = 0, back = 0;
    if (words.length > 1) {
      while (front < shortest - 1 && words.every((w) => w[front] === words[0][front])) front++;
      while (back < shortest - 1 - front && words.every((w) => w[w.length - 1 - back] === words[0][words[0].length - 1 - back])) back++;
    }
    const frame = front || back ? [...words[0].slice(0, front), "\u2026", ...words[0].slice(words[0].length - back)].join(" ") : "";
    return { frame, texts: words.map((w) => w.slice(front, w.length - back).join(" ")) };
  }
  const shortened = TEXTS ? Object.fromEntries(Object.entries(TEXTS.groups).map(([title, members]) => [title, shorten(members)])) : {};
  function groupList([title, members], embedding, original) {
    const now = probabilities(embedding, members), before = probabilities(original, members);
    const best = (values, n) => values.map((_, i) => i).sort((a, b) => values[b] - values[a]).slice(0, n);
    const n = Object.keys(TEXTS.groups).length > 1 ? 2 : 5;
    const shown = [...new Set([...best(before, n), ...best(now, n)])].sort((a, b) => before[b] - before[a] || a - b);
    return el("div", { class: "chances" }, el("h4", {}, `${title} `, el("small", { text: shortened[title].frame })), el("ul", {}, ...shown.map((i) => el("li", {
      "data-caption": members[i], "data-value": now[i], title: `${TEXTS.captions[members[i]]}: ${percent(before[i])} % before` },
    el("span", { class: "words", text: shortened[title].texts[i] }), bar(now[i], before[i]),
    el("span", { class: "amount", text: `${percent(now[i])}\u2009%` })))));
  }
  function update() {
    const numbers = numbersOf(image), embedding = embed(numbers), original = numbers.embedding;
    const value = cosine(embedding, original);
    $("live-cosine").textContent = Number.isFinite(value) ? value.toFixed(3).replace("-", "\u2212") : "\u2013";
    $("live-cosine").dataset.value = value;
    $("live-cosine-bar").replaceChildren(...bar(value, 1).childNodes);
    $("live-reset").disabled = !factors.size;
    const blocks = new Set([...factors.keys()]);
    $("live-changed").textContent = blocks.size ? `${blocks.size} part${blocks.size > 1 ? "s" : ""} changed` : "nothing changed";
    if (unit) $("live-chances").replaceChildren(...Object.entries(TEXTS.groups).map((g) => groupList(g, embedding, original)));
    const at = target === null ? null : TARGETS.get(target), now = target === null ? null : common(target);
    $("live-target").textContent = at ? at.words : "choose a part";
    for (const id of ["live-slider", "live-number"]) {
      $(id).disabled = !at;
      $(id).setAttribute("aria-label", at ? `factor of ${at.words}` : "factor");
      if (document.activeElement !== $(id) || id === "live-slider") $(id).value = now === null ? (id === "live-slider" ? 1 : "") : now;
    }
    for (const b of document.querySelectorAll("#live-section [data-factor]")) b.disabled = !at;
    paint();
  }

  // ---------------------------------------------------------------- start
  function listen() {
    const turn = (event) => {
      const value = event.target.value === "" ? NaN : Number(event.target.value);
      if (target !== null && Number.isFinite(value)) { set(target, value); update(); }
    };
    for (const id of ["live-slider", "live-number"]) $(id).addEventListener("input", turn);
    $("live-number").addEventListener("change", update);
    for (const b of document.querySelectorAll("#live-section [data-factor]")) {
      b.addEventListener("click", () => { set(target, Number(b.dataset.factor)); update(); });
    }
    $("live-reset").addEventListener("click", () => { factors.clear(); update(); });
  }
  if (TEXTS && !unit) $("live-chances").append(el("p", { class: "hint", text: "There are too many captions for a page to carry their probabilities." }));
  build();
  listen();
  $("live-section").hidden = false;
  return {
    draw(index) {
      const has = Object.hasOwn(LIVE.images, index);
      $("live-panel").hidden = !has;
      $("live-none").hidden = has;
      if (has) { image = index; update(); }
    },
  };
};
