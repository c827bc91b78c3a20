"use strict";
// The index of features: what is searched is hidden or shown, what is sorted is moved; without a script all is there.
const box = document.getElementById("cards"), cards = [...box.children];
const search = document.getElementById("search"), order = document.getElementById("order");
const steered = document.getElementById("steered"), count = document.getElementById("count");
const words = new Map(cards.map((card) => [card, [...card.querySelectorAll("h3 a, .said, .tokens")].map((e) => e.textContent).join(" ").toLowerCase()]));
const as_number = (card, key) => (card.dataset[key] === "" ? -Infinity : Number(card.dataset[key]));
function show() {
  const asked = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let n = 0;
  for (const card of cards) {
    const fits = asked.every((word) => /^f?\d+$/.test(word) ? card.id === `f${word.replace("f", "")}` : words.get(card).includes(word));
    card.hidden = !fits || Boolean(steered && steered.checked && !("steered" in card.dataset));
    n += !card.hidden;
  }
  count.textContent = n === cards.length ? `${n} features` : `${n} of ${cards.length} features`;
}
function sort() {
  const first = order.options[0].value; // the order in which they were written
  const moved = order.value === first ? cards : [...cards].sort((a, b) => as_number(b, order.value) - as_number(a, order.value));
  box.append(...moved);
}
search.addEventListener("input", show);
if (steered) steered.addEventListener("change", show);
order.addEventListener("change", sort);
