"""From a request to encoded speech, for every protocol."""
