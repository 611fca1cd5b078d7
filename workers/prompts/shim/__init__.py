"""What prompt managers written for LiteLLM import, while LiteLLM itself is not installed."""
