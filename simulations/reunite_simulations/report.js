// The page of `reunite simulate --report`: a card for what the pointer rests on, zoom, and times
// that lead to their place. Without it the page shows all of this but zoom, as the browser's own
// tooltips.
"use strict";
document.documentElement.classList.add("js");
const scroll = document.querySelector(".scroll");
const time = document.querySelector(".time");
const card = document.createElement("div");
card.className = "card";
card.hidden = true;
document.body.append(card);
for (const each of document.querySelectorAll(".time [title]")) {
  each.dataset.said = each.title;
  each.setAttribute("role", "img");
  each.setAttribute("aria-label", each.title);
  each.removeAttribute("title");
}
function show(event) {
  const over = event.target.closest("[data-said]");
  card.hidden = !over;
  if (!over) return;
  card.textContent = over.dataset.said;
  const { width, height } = card.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, innerWidth - width - 8);
  const below = event.clientY + 18;
  card.style.left = Math.max(left, 8) + "px";
  card.style.top = (below + height > innerHeight ? event.clientY - height - 12 : below) + "px";
}
addEventListener("pointermove", show);
addEventListener("pointerdown", show);
addEventListener("scroll", () => { card.hidden = true; }, true);
const names = () => parseFloat(getComputedStyle(time).getPropertyValue("--names"));
function zoom(times) {
  const middle = (scroll.scrollLeft + scroll.clientWidth / 2) / scroll.scrollWidth;
  time.style.setProperty("--zoom", times);
  scroll.scrollLeft = middle * scroll.scrollWidth - scroll.clientWidth / 2;
  for (const button of document.querySelectorAll(".zoom button"))
    button.setAttribute("aria-pressed", String(button.value === String(times)));
}
for (const button of document.querySelectorAll(".zoom button"))
  button.addEventListener("click", () => zoom(Number(button.value)));
const cursor = document.querySelector(".rule.cursor");
for (const link of document.querySelectorAll("a[data-at]"))
  link.addEventListener("click", () => {
    const share = Number(link.dataset.at);
    cursor.style.left = share * 100 + "%";
    cursor.hidden = false;
    const width = scroll.scrollWidth - names();
    scroll.scrollLeft = share * width - (scroll.clientWidth - names()) / 2;
  });
