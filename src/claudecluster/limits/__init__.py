"""Pure: windows, forecasts, admission."""
