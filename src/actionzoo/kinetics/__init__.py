"""The data set as files: mirrors, archives, short-side shards and the manifest. No torch in here."""
