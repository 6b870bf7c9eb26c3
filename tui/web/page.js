"use strict";
// textual.js connects to what the page's element says; through a tunnel only the browser knows its own address.
document.getElementById("terminal").dataset.sessionWebsocketUrl = location.origin.replace(/^http/, "ws") + "/ws";

const again = document.getElementById("again");
again.addEventListener("click", () => location.reload());

// Keys go to the screen at once, without a click into it; and Enter opens it again when it has ended.
new MutationObserver(() => {
  if (document.body.classList.contains("-closed")) {
    again.focus();
  } else if (document.body.classList.contains("-first-byte")) {
    document.querySelector(".xterm-helper-textarea")?.focus();
  }
}).observe(document.body, { attributes: true, attributeFilter: ["class"] });
