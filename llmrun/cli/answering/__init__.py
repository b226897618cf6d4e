"""What one-shot answers and chats share: the prompt, the form of an answer, what it cost."""
