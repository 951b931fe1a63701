"""Published protocols, run again: what to run (plan), how (execute), what came out (verdict, collect), files (write)."""
