// Drives the page of a running server in Chromium, as a person does.
//
//     node page.mjs BASE_URL OUT_DIR
//
// Pictures of the page go to OUT_DIR. CHROMIUM names the browser (/usr/bin/chromium), KEY the server's API key, where it has one.
// The first check that fails ends it with exit code 1.

import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const [base, out] = process.argv.slice(2);
if (!out) {
  console.error('usage: node page.mjs BASE_URL OUT_DIR');
  process.exit(1);
}
const origin = new URL(base).origin;
mkdirSync(out, { recursive: true });

const PROMPT = 'def add(a, b):\n    """The sum of a and b."""\n';
const SUFFIX = '\n\nprint(add(1, 2))\n';
const complained = [];

/** A page of its own, with its own text, that notes each request to elsewhere and each complaint of the browser. */
async function open(browser, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, ...options });
  const tab = await context.newPage();
  tab.setDefaultTimeout(30_000);
  tab.sent = [];
  tab.on('console', message => {
    const refused = tab.refuses || (process.env.KEY && message.text().includes('401'));
    if (['error', 'warning'].includes(message.type()) && !refused) complained.push(message.text());
  });
  tab.on('pageerror', error => complained.push(String(error)));
  tab.on('request', request => {
    const url = new URL(request.url());
    if (url.protocol !== 'data:' && url.origin !== origin) complained.push(`a request to ${request.url()}`);
    if (url.pathname.endsWith('/v1/completions')) tab.sent.push(request.postDataJSON());
  });
  return tab;
}

async function greeted(tab) {
  await tab.goto(base);
  if (process.env.KEY) {
    const key = tab.getByLabel('API key');
    await key.fill(process.env.KEY);
    await key.press('Enter');
  }
  await said(tab, 'Ready.');
}

/** Waits for what the page says. */
function said(tab, words) {
  return tab.getByRole('status').filter({ hasText: words }).waitFor();
}

async function ended(tab) {
  await said(tab, /^(The end|Stopped)/);
  const error = await tab.locator('#error').textContent();
  assert.equal(error, '', `the page reports an error: ${error}`);
}

const text = tab => tab.getByLabel('Python text');

/** The text before the cursor and after it. */
async function around(tab) {
  return text(tab).evaluate(area => [area.value.slice(0, area.selectionEnd), area.value.slice(area.selectionEnd)]);
}

const checks = {
  async 'the model is named'(tab) {
    const headers = { authorization: `Bearer ${process.env.KEY ?? ''}` };
    const answer = await tab.request.get(new URL('v1/models', base).href, { headers });
    const model = (await answer.json()).data[0].id;
    assert.ok((await tab.locator('#model').textContent()).includes(model), `not ${model}`);
  },

  async 'the key is asked for only where there is one'(tab) {
    assert.equal(await tab.getByLabel('API key').isVisible(), Boolean(process.env.KEY));
  },

  async 'a completion streams in at the cursor, coloured and timed, and undo takes it back'(tab) {
    await text(tab).fill(PROMPT);
    await tab.getByLabel('max_tokens').fill('64');
    await tab.getByLabel('stop').fill('');
    const grown = text(tab).evaluate((area, from) => new Promise(done => {
      const lengths = new Set();
      const look = () => {
        if (area.value.length > from) lengths.add(area.value.length);
        const busy = document.getElementById('editor').ariaBusy === 'true';
        if (lengths.size && !busy) done(lengths.size); else requestAnimationFrame(look);
      };
      look();
    }), PROMPT.length);
    await tab.getByRole('button', { name: 'Complete' }).click();
    await ended(tab);
    assert.ok(await grown > 2, 'the text came at once, not as a stream');
    const sent = tab.sent.at(-1);
    assert.equal(sent.prompt, PROMPT);
    assert.equal(sent.suffix, undefined);
    assert.deepEqual([sent.stream, sent.logprobs, sent.max_tokens], [true, 5, 64]);
    const value = await text(tab).inputValue();
    assert.ok(value.startsWith(PROMPT) && value.length > PROMPT.length, value);
    assert.equal(await tab.locator('#sheet').textContent(), value + '\n', 'the sheet shows other text');
    assert.ok(await tab.locator('#sheet span').count() > 3, 'tokens have no colours');
    for (const id of ['first', 'count', 'speed']) {
      assert.match(await tab.locator(`#${id}`).textContent(), /^[\d.]+( s)?$/, `no ${id}`);
    }
    await tab.getByRole('button', { name: 'Undo' }).click();
    assert.equal(await text(tab).inputValue(), PROMPT);
    await tab.getByRole('button', { name: 'Redo' }).click();
    assert.equal(await text(tab).inputValue(), value);
  },

  async 'pointing at a token shows what else was likely, and choosing that writes on from it'(tab) {
    const box = await tab.locator('#sheet span').nth(1).boundingBox();
    await tab.mouse.move(box.x + box.width / 2, box.y + Math.min(box.height, 20) / 2);
    await tab.getByRole('heading', { name: /^At / }).waitFor();
    assert.match(await tab.locator('#choices li').first().textContent(), /[\d.]+ %$/);
    const other = tab.locator('#choices button').first();
    const before = await text(tab).inputValue();
    await other.click();
    await ended(tab);
    const after = await text(tab).inputValue();
    assert.notEqual(after, before);
    assert.ok(after.startsWith(PROMPT));
    await tab.keyboard.press('Control+z');
    assert.equal(await text(tab).inputValue(), before, 'one undo takes the choice and its completion back');
  },

  async 'the sheet and the text area break lines at the same places'(tab) {
    const words = 'wide words of a line that is broken, 日本語, \t and a_name_that_is_long * 3';
    await text(tab).fill((words + ' ' + words + '\n' + words + ' ').repeat(28));
    const sheet = await tab.locator('#sheet').evaluate(sheet => sheet.offsetHeight);
    const area = await text(tab).evaluate(area => area.scrollHeight);
    assert.ok(sheet > 800, `the sheet is only ${sheet} px high`);
    assert.equal(area, sheet, 'heights in px');
  },

  async 'text after the cursor is the suffix, and stays'(tab) {
    await text(tab).fill(PROMPT + SUFFIX);
    await text(tab).evaluate((area, at) => area.setSelectionRange(at, at), PROMPT.length);
    await text(tab).press('Control+Enter');
    await ended(tab);
    const sent = tab.sent.at(-1);
    assert.deepEqual([sent.prompt, sent.suffix], [PROMPT, SUFFIX]);
    const [before, after] = await around(tab);
    assert.ok(before.startsWith(PROMPT), before);
    assert.equal(after, SUFFIX);
    await tab.getByLabel('Fill in the middle').uncheck();
    await text(tab).press('Control+Enter');
    await ended(tab);
    assert.equal(tab.sent.at(-1).suffix, undefined);
    await tab.getByLabel('Fill in the middle').check();
  },

  async 'stop ends the request and leaves what was written'(tab) {
    await text(tab).fill(PROMPT);
    await tab.getByLabel('max_tokens').fill('1000');
    const cut = tab.waitForEvent('requestfailed');
    await tab.getByRole('button', { name: 'Complete' }).click();
    await said(tab, 'Writing.');
    await tab.getByRole('button', { name: 'Stop' }).click();
    await said(tab, 'Stopped.');
    assert.match((await cut).url(), /completions$/);
    const length = (await text(tab).inputValue()).length;
    assert.ok(length > PROMPT.length);
    await tab.waitForTimeout(300);
    assert.equal((await text(tab).inputValue()).length, length, 'it still writes');
  },

  async 'the settings are sent under their names, an empty one not at all'(tab) {
    const values = { temperature: 0, max_tokens: 3, top_p: 0.5, top_k: 7, seed: 11 };
    for (const [name, value] of Object.entries(values)) await tab.getByLabel(name).fill(String(value));
    await tab.getByLabel('stop').fill('\\ndef \n\\\\t');
    await text(tab).fill(PROMPT);
    await text(tab).press('Control+Enter');
    await ended(tab);
    const sent = tab.sent.at(-1);
    for (const [name, value] of Object.entries({ ...values, stop: ['\ndef ', '\\t'] })) assert.deepEqual(sent[name], value, name);
    await tab.getByLabel('seed').fill('');
    await text(tab).press('Control+Enter');
    await ended(tab);
    assert.ok(!('seed' in tab.sent.at(-1)));
  },

  async 'a refusal is told in words, and the text stays'(tab) {
    tab.refuses = true;
    const many = 'x = 1; '.repeat(8_000);
    await text(tab).fill(many);
    await text(tab).press('Control+Enter');
    await tab.getByRole('alert').filter({ hasText: /context length|large/ }).waitFor();
    assert.equal(await text(tab).inputValue(), many);
    tab.refuses = false;
  },

  async 'what the model writes is never read as HTML'(tab) {
    await tab.route('**/v1/completions', route => {
      const event = object => `data: ${JSON.stringify(object)}\n\n`;
      const choice = (text, more) => event({ choices: [{ index: 0, text, finish_reason: null, ...more }] });
      const bad = '<img src=x onerror=alert(1)>';
      const logprobs = { tokens: [bad], token_logprobs: [-1], top_logprobs: [{ [bad]: -1, '<b>no</b>': -2 }], text_offset: [0] };
      route.fulfill({
        contentType: 'text/event-stream',
        body: `:\n\n${choice(bad, { logprobs })}${event({ error: { message: '<i>failed</i>' } })}`,
      });
    });
    await text(tab).fill(PROMPT);
    await text(tab).press('Control+Enter');
    await tab.getByRole('alert').filter({ hasText: '<i>failed</i>' }).waitFor();
    assert.ok((await text(tab).inputValue()).endsWith('onerror=alert(1)>'));
    await tab.locator('#choices button', { hasText: '<b>no</b>' }).waitFor();
    assert.equal(await tab.locator('main img, main b b, main i i').count(), 0);
    await tab.unroute('**/v1/completions');
  },

  async 'characters cut across tokens, and a stream that is cut'(tab) {
    await tab.route('**/v1/completions', route => {
      const chunk = (text, tokens) => `data: ${JSON.stringify({ choices: [{ index: 0, text, finish_reason: null, logprobs: {
        tokens, token_logprobs: tokens.map(() => -0.1), top_logprobs: tokens.map(token => ({ [token]: -0.1 })), text_offset: [] } }] })}\n\n`;
      const body = chunk('', ['bytes:\\xe2\\x82']) + chunk('€ = 1', ['bytes:\\xac', ' =', ' 1']);
      route.fulfill({ contentType: 'text/event-stream', body });
    });
    await text(tab).fill('');
    await text(tab).press('Control+Enter');
    await tab.getByRole('alert').filter({ hasText: 'closed the stream' }).waitFor();
    assert.equal(await text(tab).inputValue(), '€ = 1');
    await tab.unroute('**/v1/completions');
  },
};

/** From the first key to the last no pointer: what has the focus is seen, and all is reached by Tab. */
async function keyboard(tab) {
  await greeted(tab);
  await text(tab).focus();
  await tab.keyboard.press('Control+a');
  await tab.keyboard.type('def twice(x):\nreturn 2 * x');
  assert.equal(await text(tab).inputValue(), 'def twice(x):\n    return 2 * x', 'a new line keeps the indent');
  await tab.keyboard.press('Control+z');
  assert.ok(!(await text(tab).inputValue()).includes('2 * x'), 'undo of typing');
  await tab.keyboard.press('Control+Shift+z');
  await tab.keyboard.press('Control+Home');
  await tab.keyboard.press('End');
  await tab.keyboard.press('Enter');
  await tab.keyboard.press('Control+Enter');
  await said(tab, 'Writing.');
  await tab.keyboard.press('Escape');
  await ended(tab);
  const [before, after] = await around(tab);
  assert.match(before, /^def twice\(x\):\n {4}./);
  assert.equal(after, '\n    return 2 * x');
  await tab.keyboard.press('ArrowLeft');
  await tab.getByRole('heading', { name: /^At / }).waitFor();

  const reached = [];
  for (let presses = 0; presses < 30; presses++) {
    await tab.keyboard.press('Tab');
    const [name, seen] = await tab.evaluate(() => {
      const focused = document.activeElement, box = focused.getBoundingClientRect();
      const outline = getComputedStyle(focused).outlineStyle !== 'none' || focused.id === 'text';
      return [focused.name || focused.id || focused.parentElement.tagName, outline && box.width > 0];
    });
    if (name === 'BODY' || name === 'HTML' || reached.includes(name) && name !== 'LI') break;
    assert.ok(seen, `the focus on ${name} is not seen`);
    reached.push(name);
  }
  for (const name of ['go', 'undo', 'LI', 'middle', 'temperature', 'max_tokens', 'top_p', 'top_k', 'seed', 'stop']) {
    assert.ok(reached.includes(name), `Tab does not reach ${name}: ${reached}`);
  }
}

/** Pictures, after a completion with text after it; nothing may stand wider than the window. */
async function picture(browser, name, options) {
  const tab = await open(browser, options);
  await greeted(tab);
  const head = 'import math\n\n\ndef mean(values: list[float]) -> float:\n    """The arithmetic mean."""\n';
  await text(tab).fill(`${head}\n\n# A line of more than a screen's width: ${'wide '.repeat(30)}\nprint(mean([1.0, 2.5]), math.pi)\n`);
  await text(tab).evaluate((area, at) => area.setSelectionRange(at, at), head.length);
  await tab.getByLabel('max_tokens').fill('40');
  await tab.getByLabel('temperature').fill('0.8');
  await tab.getByLabel('seed').fill('3');
  await text(tab).press('Control+Enter');
  await ended(tab);
  await text(tab).press('ArrowLeft');
  const [wide, window] = await tab.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(wide <= window, `${name}: ${wide} px wide in a window of ${window}`);
  const short = await tab.evaluate(() => [...document.querySelectorAll('#editor')].filter(box => box.scrollWidth > box.clientWidth).length);
  assert.equal(short, 0, `${name}: the editor scrolls sideways`);
  await tab.screenshot({ path: join(out, `${name}.png`), fullPage: true });
  await tab.context().close();
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu'],
});
let doing = 'the page opens';
try {
  const tab = await open(browser);
  await greeted(tab);
  for (const [name, check] of Object.entries(checks)) {
    doing = name;
    await check(tab);
    console.log(`ok: ${name}`);
  }
  doing = 'all goes by keyboard';
  await keyboard(await open(browser));
  console.log(`ok: ${doing}`);
  for (const [name, options] of Object.entries({
    light: { colorScheme: 'light' },
    dark: { colorScheme: 'dark' },
    phone: { colorScheme: 'light', viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, hasTouch: true },
    'phone-dark': { colorScheme: 'dark', viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, hasTouch: true },
  })) {
    doing = `the picture ${name}.png`;
    await picture(browser, name, options);
    console.log(`ok: ${doing}`);
  }
  doing = 'no request to elsewhere and no complaint of the browser';
  assert.deepEqual(complained, []);
  console.log(`ok: ${doing}`);
} catch (error) {
  console.error(`failed: ${doing}: ${error.message.slice(0, 600)}`);
  process.exitCode = 1;
} finally {
  await browser.close();
}
