"""Raw rows to typed records to token ids: sources, records, check, loading, splits, chat."""
