// Keeps the page as new as the daemon: waits for news of events and fetches the page again when there is one.
// It renders nothing of its own, so what it shows is what the daemon says. It never polls; once a
// minute it looks whether it missed something.
'use strict';

(() => {
  const root = document.documentElement;
  // Without what may stand in front of the host in the address: fetch refuses that.
  const url = (path) => location.origin + path;
  const at = (id) => document.getElementById(id);

  const GATHER_MS = 200; // events that come together cost one look
  const SAFETY_MS = 60000;
  const PATIENCE_MS = 10000;
  const SILENCE_MS = 4000; // this long without a connection, and the reader is told
  const RETRY_MS = 1000;
  const RETRY_MAX_MS = 5000;

  let source = null;
  let timer = null;
  let looking = false;
  let again = false;
  let tookMs = 0;
  let lostAt = null;
  let retryMs = RETRY_MS;
  let token = '';

  // ---- what is shown ----

  const keyOf = (node) => {
    if (!node || node === document.body) return null;
    if (node.id) return `#${CSS.escape(node.id)}`;
    const names = ['data-verb', 'data-unit', 'data-alert', 'href'].filter((name) => node.hasAttribute(name));
    const section = node.closest('[id]');
    const own = node.localName + names.map((name) => `[${name}="${CSS.escape(node.getAttribute(name))}"]`).join('');
    return section ? `#${CSS.escape(section.id)} ${own}` : own;
  };

  // Sections as the daemon sent them: what has not changed stays, and is not read out again.
  const known = new Map(root.dataset.sections.split(' ').map((id) => [id, at(id)?.outerHTML]));

  const swap = (page) => {
    const fresh = page.documentElement;
    if (fresh.dataset.version !== root.dataset.version) return location.reload();
    const focused = keyOf(document.activeElement);
    for (const id of root.dataset.sections.split(' ')) {
      const [old, next] = [at(id), page.getElementById(id)];
      if (!old || !next || known.get(id) === next.outerHTML) continue;
      known.set(id, next.outerHTML);
      const left = [...old.querySelectorAll('.scroll')].map((box) => [box.scrollLeft, box.scrollTop]);
      const opened = [...old.querySelectorAll('details[open]')].map((box) => box.dataset.keep);
      for (const box of next.querySelectorAll('details')) box.open = opened.includes(box.dataset.keep);
      old.replaceWith(document.adoptNode(next));
      [...next.querySelectorAll('.scroll')].forEach((box, n) => {
        if (left[n]) [box.scrollLeft, box.scrollTop] = left[n];
      });
    }
    if (focused && keyOf(document.activeElement) !== focused) {
      const node = document.querySelector(focused);
      if (node) node.focus({ preventScroll: true });
    }
    const icon = page.getElementById('icon');
    if (icon && at('icon').getAttribute('href') !== icon.getAttribute('href')) at('icon').replaceWith(icon);
    if (document.title !== page.title) {
      document.title = page.title;
      at('said').textContent = page.title; // one sentence for who listens
    }
    root.dataset.status = fresh.dataset.status;
    root.dataset.lastEvent = fresh.dataset.lastEvent;
    tick();
  };

  const look = async () => {
    if (looking) {
      again = true;
      return;
    }
    looking = true;
    const began = performance.now();
    try {
      const answer = await fetch(url('/'), { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE_MS) });
      if (!answer.ok) throw new Error(`the daemon answers ${answer.status}`);
      swap(new DOMParser().parseFromString(await answer.text(), 'text/html'));
      found();
    } catch (error) {
      lost(error.message);
    }
    tookMs = performance.now() - began;
    looking = false;
    if (again) soon();
  };

  // The slower the daemon, the less often it is asked.
  const soon = () => {
    again = false;
    if (timer === null) {
      timer = setTimeout(() => {
        timer = null;
        look();
      }, Math.max(GATHER_MS, 4 * tookMs));
    }
  };

  // ---- live or not ----

  const say = () => {
    const live = source !== null && source.readyState === EventSource.OPEN && lostAt === null;
    const word = live ? 'live' : 'connecting';
    const place = at('live');
    if (place && place.textContent !== word) place.textContent = word;
    root.classList.toggle('live', live);
  };

  const found = () => {
    lostAt = null;
    at('stale').hidden = true;
    root.classList.remove('stale');
    say();
  };

  const lost = (why) => {
    lostAt = lostAt ?? Date.now();
    say();
    if (Date.now() - lostAt < SILENCE_MS && !root.classList.contains('stale')) {
      setTimeout(() => lostAt !== null && lost(why), SILENCE_MS);
      return;
    }
    const box = at('stale');
    if (!box.hidden) return;
    root.classList.add('stale');
    box.textContent = `NOT LIVE since ${clock(new Date(lostAt))}: ${why}. What stands below is old. It is tried again.`;
    box.hidden = false;
    document.title = `STALE · ${document.title.replace(/^STALE · /, '')}`;
  };

  const listen = () => {
    source = new EventSource(url('/dashboard/news?follow=true'));
    source.onopen = () => {
      retryMs = RETRY_MS;
      soon();
    };
    source.onmessage = () => soon();
    // Not left to the browser, which tries for ever at one pace, and shows nothing meanwhile.
    source.onerror = () => {
      source.close();
      lost('the daemon does not answer');
      setTimeout(async () => {
        await look();
        listen();
      }, retryMs);
      retryMs = Math.min(2 * retryMs, RETRY_MAX_MS);
    };
  };

  // ---- times in the reader's zone, ages that go on ----

  const two = (number) => String(number).padStart(2, '0');
  const clock = (date) => `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;

  // As `rough` in time.rs.
  const rough = (ms) => {
    let left = Math.max(0, Math.floor(ms / 1000));
    if (left >= 86400) left -= left % 3600;
    else if (left >= 3600) left -= left % 60;
    const parts = [];
    for (const [word, size] of [['d', 86400], ['h', 3600], ['m', 60], ['s', 1]]) {
      if (left >= size) parts.push(`${Math.floor(left / size)}${word}`);
      left %= size;
    }
    return parts.join(' ') || '0s';
  };

  const write = (node, text) => {
    if (node.textContent !== text) node.textContent = text;
  };

  const tick = () => {
    const now = new Date();
    for (const node of document.querySelectorAll('time')) {
      const date = new Date(node.dateTime);
      if ('since' in node.dataset) write(node, rough(now - date));
      else if ('until' in node.dataset) write(node, date - now >= 1000 ? `in ${rough(date - now)}` : 'now');
      else if ('hour' in node.dataset) write(node, clock(date).slice(0, 5));
      else if ('at' in node.dataset) {
        const same = date.toDateString() === now.toDateString();
        write(node, same ? clock(date) : `${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock(date)}`);
      }
    }
    for (const node of document.querySelectorAll('.zone')) write(node, '');
  };

  // ---- acting ----

  const tell = (text) => write(at('outcome'), text);

  const useToken = (text) => {
    token = text;
    at('token').value = '';
    root.classList.toggle('acting', token !== '');
    at('forget').hidden = token === '';
    write(at('act').querySelector('summary'), token === '' ? 'Reading only. Type the token to act' : 'Acting: the buttons beside the units are yours');
  };

  const post = async (what, path, body) => {
    tell(`${what}: under way`);
    try {
      const answer = await fetch(url(path), {
        method: 'POST',
        // A wrong token must not make the browser forget the password that it reads with.
        credentials: 'omit',
        headers: { 'Content-Type': 'application/json', Authorization: `Bearer ${token}` },
        body: JSON.stringify(body),
      });
      const said = await answer.json();
      if (answer.status === 401) useToken('');
      if (!answer.ok) return tell(`${what}: ${said.error.message}${said.error.help ? `; ${said.error.help}` : ''}`);
      tell(`${what}: ${said.outcomes.map((one) => one.message ? `${one.outcome}, ${one.message}` : one.outcome).join('; ') || 'done'}`);
    } catch (error) {
      tell(`${what}: no answer (${error.message})`);
    }
    soon();
  };

  document.addEventListener('click', (event) => {
    const button = event.target.closest('button.act');
    if (!button || token === '') return;
    const { verb, unit, alert } = button.dataset;
    if (alert !== undefined) return void post(`take alert ${alert}`, '/v1/alerts/ack', { alerts: [alert] });
    if (verb !== 'start' && !confirm(`${verb} ${unit}?`)) return;
    post(`${verb} ${unit}`, `/v1/units/${encodeURIComponent(unit)}/${verb}`, {});
  });
  at('use').addEventListener('click', () => useToken(at('token').value.trim()));
  at('token').addEventListener('keydown', (event) => event.key === 'Enter' && useToken(at('token').value.trim()));
  at('forget').addEventListener('click', () => {
    useToken('');
    at('token').focus();
  });

  // ---- begin ----

  at('act').hidden = false;
  tick();
  say();
  listen();
  setInterval(tick, 1000);
  setInterval(look, SAFETY_MS);
})();
