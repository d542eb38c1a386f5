"""The loop on real preference data: Anthropic's HH transcripts and AlpacaEval's judgements."""
