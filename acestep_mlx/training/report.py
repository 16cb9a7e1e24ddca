"""placeholder"""


def write_report(output_dir, config):
    return None
