"""Python, torch and the machine, as all packages use them: threads, processes, files, random draws, hashes."""
