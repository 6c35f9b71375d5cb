// What the pages do by themselves: parts that load again, copy buttons, and times that grow.
// Everything else works without a script.
"use strict";

const FAILED_LIMIT = 3;
// A page that is left open asks no longer than this.
const LIVE_MS = 30 * 60 * 1000;

function startLive(region) {
  const everyMs = Number(region.dataset.live) * 1000;
  const endsAt = Date.now() + LIVE_MS;
  let failed = 0;
  async function refresh() {
    const isBusy = document.hidden || region.contains(document.activeElement)
      || String(window.getSelection() || "") !== "";
    if (!isBusy) {
      try {
        const response = await fetch(window.location.href, { headers: { Accept: "text/html", "X-Part": region.id } });
        if (response.redirected) {
          window.location.reload();
          return;
        }
        if (!response.ok) throw new Error(String(response.status));
        const page = new DOMParser().parseFromString(await response.text(), "text/html");
        const fresh = page.getElementById(region.id);
        if (fresh) region.replaceChildren(...fresh.childNodes);
        // What has ended changes no more.
        if (fresh && fresh.dataset.live === undefined) return;
        failed = 0;
      } catch {
        failed += 1;
      }
    }
    const isOver = Date.now() > endsAt;
    region.classList.toggle("stale", isOver || failed >= FAILED_LIMIT);
    if (isOver) return;
    window.setTimeout(refresh, everyMs * Math.min(8, 2 ** failed));
  }
  window.setTimeout(refresh, everyMs);
}

function startCopy(button) {
  const text = button.parentElement.querySelector("pre").textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      const range = document.createRange();
      range.selectNodeContents(button.parentElement.querySelector("pre"));
      window.getSelection().removeAllRanges();
      window.getSelection().addRange(range);
      button.textContent = "Selected: copy it now";
    }
  });
}

document.querySelectorAll("[data-live]").forEach(startLive);
document.querySelectorAll("[data-copy]").forEach(startCopy);
