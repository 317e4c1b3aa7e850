"use strict";
// A chart's file as a picture: in the light colours, at twice its size.
async function picture(link) {
  const svg = decodeURIComponent(link.href.slice(link.href.indexOf(",") + 1));
  const [, , width, height] = svg.match(/viewBox="([^"]*)"/)[1].split(" ").map(Number);
  const scale = 1440 / width;
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const sized = svg
    .replace("<svg ", `<svg width="${canvas.width}" height="${canvas.height}" `)
    .replaceAll("prefers-color-scheme: dark", "not all");
  const image = new Image();
  image.src = "data:image/svg+xml," + encodeURIComponent(sized);
  await image.decode();
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  const saved = document.createElement("a");
  saved.href = canvas.toDataURL("image/png");
  saved.download = link.download.replace(/svg$/, "png");
  saved.click();
}

for (const link of document.querySelectorAll(".take a")) {
  const button = link.parentElement.querySelector("button");
  button.hidden = false;
  button.addEventListener("click", () => picture(link));
}
