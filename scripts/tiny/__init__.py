"""What `scripts/train_tiny.py` teaches the demo model, and the tokenizer it is taught with.

grammar.py    a micro-grammar: `[a|b]` chooses, `{slot}` fills in
stories.py    short stories with one hero, one friend and one worry
knowledge.py  questions about running models locally, with their answers, and the wordings held out for evaluation
chat.py       turns both into conversations, with typos, moods and several turns
tokenizer.py  a SentencePiece-style BPE with byte fallback, exactly as llama.cpp applies it
"""
