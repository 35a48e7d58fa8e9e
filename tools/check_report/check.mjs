// Opens a report in headless Chromium at two widths, light and dark: console messages, height, links, images,
// overflow, sorting, and accessibility by axe-core. Prints one JSON object for each, and exits with 1 if one fails.
//
//   npm install puppeteer-core axe-core    (in any folder, with NODE_PATH or from there)
//   node check.mjs report.html [folder for screenshots]
import { createRequire } from "node:module";
import { mkdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(join(process.cwd(), "package.json"));
const puppeteer = require("puppeteer-core");
const axe = readFileSync(require.resolve("axe-core"), "utf8");
const [page_path, shots] = process.argv.slice(2);
if (!page_path) {
  console.error("usage: node check.mjs report.html [folder for screenshots]");
  process.exit(2);
}
if (shots) mkdirSync(shots, { recursive: true });
const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
const browser = await puppeteer.launch({ executablePath, args: ["--no-sandbox"] });
let failed = false;
for (const width of [1200, 420]) {
  for (const scheme of ["light", "dark"]) {
    const page = await browser.newPage();
    const messages = [], requests = [];
    page.on("console", message => messages.push(message.text()));
    page.on("pageerror", error => messages.push(String(error)));
    page.on("request", request => /^https?:/.test(request.url()) && requests.push(request.url()));
    await page.setViewport({ width, height: 900 });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await page.goto(pathToFileURL(resolve(page_path)).href);
    const found = await page.evaluate(() => {
      const links = [...document.querySelectorAll('a[href^="#"]')].map(a => decodeURIComponent(a.hash.slice(1)));
      const sections = [...document.querySelectorAll("section")].map(section => section.id);
      const linked = new Set([...document.querySelectorAll('nav a[href^="#"], .here a')].map(a => decodeURIComponent(a.hash.slice(1))));
      return {
        height: document.documentElement.scrollHeight,
        overflow: document.documentElement.scrollWidth - innerWidth,
        dead: links.filter(id => !document.getElementById(id)),
        unreachable: sections.filter(id => !linked.has(id)),
        sections: sections.length,
        withoutAlt: [...document.images].filter(image => !image.alt).length,
        broken: [...document.images].filter(image => !image.naturalWidth).length,
        smallest: Math.min(...[...document.images].map(image => image.clientWidth / image.naturalWidth)),
      };
    });
    const sorted = await page.evaluate(() => {
      const button = document.querySelector("th button");
      if (!button) return "no table";
      button.focus();
      button.click();
      return button.parentElement.getAttribute("aria-sort");
    });
    if (shots) await page.screenshot({ path: join(shots, `${width}-${scheme}.png`), fullPage: true });
    await page.evaluate(() => document.querySelectorAll("details").forEach(one => (one.open = true)));
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    const serious = violations
      .filter(one => ["serious", "critical"].includes(one.impact))
      .map(one => `${one.id} (${one.nodes.length}): ${one.nodes[0].html.slice(0, 150)}`);
    const others = violations.length - serious.length;
    console.log(JSON.stringify({ width, scheme, ...found, sorted, messages, requests, serious, others }, null, 1));
    const { dead, unreachable, withoutAlt, broken, overflow } = found;
    failed ||= [messages, requests, serious, dead, unreachable].some(list => list.length);
    failed ||= withoutAlt + broken > 0 || overflow > 0;
    await page.close();
  }
}
await browser.close();
process.exit(failed ? 1 : 0);
