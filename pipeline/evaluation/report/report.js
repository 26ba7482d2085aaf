"use strict";
// Without this script the page is complete: browsers show a title themselves, and the legend only names the lines.
const tip = document.getElementById("tip");
for (const title of document.querySelectorAll("svg.plot title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}

function showTip(event) {
  const mark = event.target.closest("[data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8);
  const above = event.clientY - tip.offsetHeight - 12;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 0 ? above : event.clientY + 20}px`;
}
document.addEventListener("pointermove", showTip);
document.addEventListener("pointerdown", showTip);
document.addEventListener("scroll", () => { tip.hidden = true; });

for (const button of document.querySelectorAll(".legend button")) {
  button.disabled = false;
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") === "false";
    button.setAttribute("aria-pressed", shown);
    const lines = button.closest("figure").querySelectorAll(`.series[data-row="${button.dataset.row}"]`);
    for (const line of lines) line.classList.toggle("hidden", !shown);
  });
}
for (const hint of document.querySelectorAll(".screen")) hint.hidden = false;
