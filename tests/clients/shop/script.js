"use strict";
let isRead = false;
fetch("data.json").then((answer) => answer.json()).then(({ text }) => {
  document.querySelector("output").textContent = text;
  isRead = true;
});
// Whether the style and the data have arrived.
window.isStyled = () => isRead && getComputedStyle(document.querySelector("header")).display === "flex";
