"""What an answer may be: JSON, schemas, choices, grammars."""
