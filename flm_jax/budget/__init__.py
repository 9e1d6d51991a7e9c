"""What training costs, and what a budget buys: ledgers of runs, the paper's own tables, the search for a schedule."""
