"""A SentencePiece-style BPE with byte fallback: trained here, applied here exactly as llama.cpp applies it.

llama.cpp's `llama` tokenizer replaces spaces by `▁`, starts from single characters and keeps merging the neighbours
whose joined text is the piece with the best score; what is no piece in the end becomes bytes `<0xNN>`. So any UTF-8
text survives a round trip. Pieces never cross a word here (a word is a run of letters with the `▁` before it), so
words can be encoded one by one, and cached.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

SPACE = "▁"
CONTROL = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
UNK, BOS, EOS = 0, 1, 2
SYSTEM, USER, ASSISTANT, END = 3, 4, 5, 6
_N_SPECIAL = 3 + len(CONTROL)
_WORD = re.compile(rf"{SPACE}?[A-Za-z]+|.", re.DOTALL)
_PRINTABLE = [chr(code) for code in range(0x21, 0x7F)]


@dataclass
class Tokenizer:
    """`pieces[id]` is a token's text; ids are control tokens, then 256 bytes, then pieces, the best score first."""

    pieces: list[str]
    _ids: dict[str, int] = field(init=False, repr=False)
    _cache: dict[str, list[int]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        first = _N_SPECIAL + 256
        self._ids = {piece: index for index, piece in enumerate(self.pieces) if index >= first}

    @property
    def first_piece(self) -> int:
        """The id of the first token that is neither a control token nor a byte."""
        return _N_SPECIAL + 256

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: no BOS, and `<|end|>` in it is text, not a control token."""
        tokens: list[int] = []
        for word in _WORD.findall(text.replace(" ", SPACE)):
            if word not in self._cache:
                self._cache[word] = self._merge(word)
            tokens += self._cache[word]
        return tokens

    def decode(self, tokens: list[int]) -> str:
        """The text of the tokens, control tokens left out."""
        data = b""
        for token in tokens:
            if token >= self.first_piece:
                data += self.pieces[token].replace(SPACE, " ").encode()
            elif token >= _N_SPECIAL:
                data += bytes([token - _N_SPECIAL])
        return data.decode(errors="replace")

    def _merge(self, word: str) -> list[int]:
        symbols = list(word)
        while len(symbols) > 1:
            known = [(self._ids[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in self._ids]
            if not known:
                break
            _, at = min(known)  # the lowest id has the best score; among equals the leftmost goes first
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        tokens: list[int] = []
        for symbol in symbols:
            known_id = self._ids.get(symbol)
            tokens += [known_id] if known_id is not None else [_N_SPECIAL + byte for byte in symbol.encode()]
        return tokens


def train(texts: list[str], n_vocab: int) -> Tokenizer:
    """Learn the merges of the most frequent neighbours until there are `n_vocab` tokens; ties go by text."""
    words = Counter(word for text in texts for word in _WORD.findall(text.replace(" ", SPACE)))
    split = {word: list(word) for word in words if len(word) > 1}
    pieces: list[str] = []
    n_merges = n_vocab - _N_SPECIAL - 256 - len(_PRINTABLE) - 1
    while len(pieces) < n_merges:
        pairs: Counter[str] = Counter()
        for word, symbols in split.items():
            for a, b in pairwise(symbols):
                pairs[a + b] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        pieces.append(best)
        for word, symbols in split.items():
            if best in word:
                split[word] = _join(symbols, best)
    special = ["<unk>", "<s>", "</s>", *CONTROL]
    return Tokenizer([*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, SPACE, *_PRINTABLE])


def _join(symbols: list[str], pair: str) -> list[str]:
    joined: list[str] = []
    for symbol in symbols:
        if joined and joined[-1] + symbol == pair:
            joined[-1] = pair
        else:
            joined.append(symbol)
    return joined
