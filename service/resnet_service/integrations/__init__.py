"""Optional integrations: a Ray Serve application and a Streamlit page."""
