// CLIP's byte-pair encoding out of a tokenizer.json of Hugging Face's `tokenizers`, for phrases.

// What the file's pre-tokenizer splits into, and GPT-2's pattern, by which its ByteLevel splits once more. JavaScript's
// \s knows U+FEFF and not U+0085; the property is what the file's regular expressions mean.
const WORDS = /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+/gu;
const PIECES = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}+|[^\p{White_Space}\p{L}\p{N}]+/gu;

const SPECIAL = /(<\|startoftext\|>|<\|endoftext\|>)/u; // found before anything is lower case

export class Tokenizer {
  /** @param {object} file the content of tokenizer.json; an Error if it is not CLIP's */
  constructor(file) {
    const { model, added_tokens: added } = file;
    if (model?.type !== "BPE" || model.end_of_word_suffix !== "</w>" || added?.length !== 2) {
      throw new Error("tokenizer.json holds no byte-pair encoding of CLIP's: export the model again.");
    }
    this.vocabulary = new Map(Object.entries(model.vocab));
    this.ranks = new Map(model.merges.map((pair, rank) => [typeof pair === "string" ? pair : pair.join(" "), rank]));
    this.special = new Map(added.map(({ content, id }) => [content, id]));
    [this.start, this.end] = [this.special.get("<|startoftext|>"), this.special.get("<|endoftext|>")];
  }

  /** Ids of a phrase, start and end included. */
  encode(text) {
    const parts = text.split(SPECIAL);
    return [this.start, ...parts.flatMap((part) => this.#encodePart(part)), this.end];
  }

  #encodePart(part) {
    if (this.special.has(part)) return [this.special.get(part)];
    const words = lower(part.normalize("NFC").replace(/\p{White_Space}+/gu, " ")).match(WORDS) ?? [];
    const pieces = words.flatMap((word) => word.match(PIECES) ?? []);
    return pieces.flatMap((piece) => this.#merge(piece).map((symbol) => this.vocabulary.get(symbol)));
  }

  /** Join the neighbours that the vocabulary joined first, the leftmost of equals, until it joined none of them. */
  #merge(piece) {
    const symbols = Array.from(new TextEncoder().encode(piece), (byte) => SYMBOLS[byte]);
    symbols[symbols.length - 1] += "</w>";
    for (;;) {
      let [best, at] = [Infinity, -1];
      for (let index = 0; index + 1 < symbols.length; index++) {
        const rank = this.ranks.get(`${symbols[index]} ${symbols[index + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, index];
      }
      if (at < 0) return symbols;
      symbols.splice(at, 2, symbols[at] + symbols[at + 1]);
    }
  }
}

/** Character by character: JavaScript alone would know the sigma at the end of a word. */
function lower(text) {
  return Array.from(text, (character) => character.toLowerCase()).join("");
}

/** A printable character for each byte, as in GPT-2's `bytes_to_unicode`. */
const SYMBOLS = (() => {
  let next = 256;
  const printable = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
})();
