// A textarea that several persons type in at once.
//
// `known` is the text as the server has it. What the person typed since is one splice, from `known`
// to what the textarea shows; one splice at a time is under way, made on the server's version. What
// others typed is put into both texts, around what the person has typed, and then the splice is made
// anew: the server has dropped the one that had not seen theirs.
//
// Places on the wire are code points; JavaScript's are UTF-16 units, two for an emoji.

export class Note {
  constructor(area, send) {
    this.area = area;
    this.send = send;
    this.known = null;
    this.version = 0;
    this.sent = null;
    // What is told while an input method composes a letter waits until it is whole.
    this.composing = false;
    this.held = [];
    area.addEventListener("input", () => this.flush());
    area.addEventListener("compositionstart", () => (this.composing = true));
    area.addEventListener("compositionend", () => {
      this.composing = false;
      this.held.splice(0).forEach((news) => this.take(news));
      this.flush();
    });
  }

  // The note is there, or there again after the connection was lost: what was typed meanwhile stays.
  open({ text, version }) {
    const before = this.known;
    const mine = before !== null && this.area.value !== before;
    this.version = version;
    this.sent = null;
    if (mine) {
      const theirs = splice(before, text, text.length);
      this.apply([theirs]);
    } else {
      this.area.value = text;
    }
    this.known = text;
    this.area.disabled = false;
    this.flush();
  }

  // What the server says: no changes acknowledge what was sent.
  take(news) {
    if (this.composing) {
      this.held.push(news);
      return;
    }
    this.version = news.version;
    if (news.changes.length === 0 && this.sent) {
      this.known = cut(this.known, this.sent);
    } else {
      this.apply(units(this.known, news.changes));
    }
    this.sent = null;
    this.flush();
  }

  // Put others' splices into both texts, from the end, so that places before stay as they are.
  apply(changes) {
    for (const change of [...changes].reverse()) {
      const mine = splice(this.known, this.area.value, this.area.selectionEnd);
      this.known = cut(this.known, change);
      around(change, mine).forEach(({ at, end, text }) => {
        const { scrollTop } = this.area;
        this.area.setRangeText(text, at, end, "preserve");
        this.area.scrollTop = scrollTop;
      });
    }
  }

  flush() {
    if (this.composing || this.sent || this.known === null || this.known === this.area.value) return;
    this.sent = splice(this.known, this.area.value, this.area.selectionEnd);
    const { at, end, text } = this.sent;
    const length = points(this.known.slice(at, end));
    this.send({ do: "edit_note", version: this.version, at: points(this.known.slice(0, at)), length, text });
  }
}

const points = (text) => [...text].length;

export const cut = (text, change) => text.slice(0, change.at) + change.text + text.slice(change.end);

// The splice that makes `to` of `from`. Where the same letter stands several times in a row it is
// the one before the caret that was typed.
export function splice(from, to, caret) {
  const most = Math.min(from.length, to.length);
  let tail = 0;
  const after = Math.min(most, to.length - caret);
  while (tail < after && from.at(-1 - tail) === to.at(-1 - tail)) tail += 1;
  let head = 0;
  while (head < most - tail && from[head] === to[head]) head += 1;
  while (tail < most - head && from.at(-1 - tail) === to.at(-1 - tail)) tail += 1;
  if (isHigh(from, head - 1)) head -= 1;
  if (isLow(from, from.length - tail) && tail > 0) tail -= 1;
  return { at: head, end: from.length - tail, text: to.slice(head, to.length - tail) };
}

const isHigh = (text, at) => at >= 0 && (text.charCodeAt(at) & 0xfc00) === 0xd800;
const isLow = (text, at) => at < text.length && (text.charCodeAt(at) & 0xfc00) === 0xdc00;

// Others' changes, from code points to units of `text`.
function units(text, changes) {
  const letters = [...text];
  const place = (end) => letters.slice(0, end).join("").length;
  return changes.map(([start, end, put]) => ({ at: place(start), end: place(end), text: put }));
}

// Another's change of the known text, as changes of a text in which `mine` was done already: what
// the person deleted is gone, and what the person wrote stays whole. From the end.
export function around(change, mine) {
  const shift = mine.text.length - (mine.end - mine.at);
  const { at, end, text } = change;
  if (end <= mine.at) return [change];
  if (at >= mine.end) return [{ at: at + shift, end: end + shift, text }];
  const found = [];
  if (end > mine.end) found.push({ at: mine.end + shift, end: end + shift, text: "" });
  const place = Math.min(at, mine.at);
  found.push({ at: place, end: Math.min(end, mine.at), text });
  return found;
}
