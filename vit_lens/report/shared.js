"use strict";
// What the pages of images and of prompts share.
const DATA = JSON.parse(document.getElementById("data").textContent);
const R = DATA.rows, NUMBERS = DATA.numbers, N = R.site.length;
const RESIDUALS = ["resid_pre", "resid_mid", "resid_post"];
const $ = (id) => document.getElementById(id);
function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") node.textContent = value;
    else if (key === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((c) => c !== null));
  return node;
}
const range = (n) => Array.from({ length: n }, (_, i) => i);
const group = (row) => DATA.groups[R.group[row]];
const groupName = (g) => (g.control ? `${g.label} \u2013 ${g.control} control` : g.label);
function format(v) {
  const text = Math.abs(v).toFixed(Math.abs(v) >= 100 ? 0 : Math.abs(v) >= 10 ? 1 : 2);
  return v < 0 && Number(text) !== 0 ? `\u2212${text}` : text;
}
const hasPicture = (row) => R.thumb[row] !== null;
// Of a sweep within a budget: how a picture was drawn.
const isCoarse = (row) => R.drawn !== null && R.drawn[row] === "coarse";
const original = (row) => `${DATA.base}pictures/${isCoarse(row) ? "coarse/" : ""}${String(row).padStart(6, "0")}.png`;
function thumb(row, alt) {
  if (!hasPicture(row)) return el("span", { class: "empty", role: "img", "aria-label": `${alt}: no picture` });
  return el("img", { src: R.thumb[row] || original(row), alt, decoding: "async", loading: R.thumb[row] ? null : "lazy" });
}
function fillSelect(select, options, value) {
  select.replaceChildren(...options.map(([key, text]) => el("option", { value: key, text })));
  if (value !== undefined) select.value = String(value);
}
// The answers to a row of one form of captions, nearest images or a probe, best first; null where nobody was asked.
function answers(what, form, row) {
  const found = DATA.beside && DATA.beside[what][form];
  if (!found) return null;
  return range(found.k).map((i) => row * found.k + i).filter((i) => found.index[i] >= 0)
    .map((i) => ({ index: found.index[i], cosine: found.cosine[i] }));
}
const rowInAddress = () => {
  const linked = /^#row-(\d+)$/.exec(location.hash);
  return linked && Number(linked[1]) < N ? Number(linked[1]) : null;
};
// The button that an arrow key leads to.
const buttonBeside = (view, event, selector) => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const step = steps[event.key], from = event.target.closest(selector);
  if (!step || !from) return null;
  event.preventDefault();
  const at = (b) => { const r = b.getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2]; };
  const [x, y] = at(from);
  let best = null, least = Infinity;
  for (const button of view.querySelectorAll(selector)) {
    const [bx, by] = at(button), along = (bx - x) * step[0] + (by - y) * step[1];
    const cost = along + 6 * Math.abs(step[0] ? by - y : bx - x);
    if (along >= 2 && cost < least) [best, least] = [button, cost];
  }
  return best;
};
