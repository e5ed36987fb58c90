"""Model servers of one's own behind the gateway: Ollama, and whatever speaks Anthropic's or OpenAI's wire."""
