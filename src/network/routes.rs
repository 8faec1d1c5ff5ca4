//! Ranges that the host already routes somewhere, from `/proc/net/route` (main table, IPv4).

use std::net::Ipv4Addr;

use crate::docker_manager::Ipv4Net;

/// Bytes of the table that are read: some 130 a route.
const TABLE_CAP: u64 = 4 << 20;

/// The destinations of the host's routes, except those over links for which `ours` is true. A table that cannot be
/// read gives none: Docker's own check remains.
#[must_use]
pub fn host_routes(ours: impl Fn(&str) -> bool) -> Vec<Ipv4Net> {
    use std::io::Read;
    let mut table = String::new();
    match std::fs::File::open("/proc/net/route").and_then(|file| file.take(TABLE_CAP).read_to_string(&mut table)) {
        Ok(_) => parse(&table, ours),
        Err(error) => {
            tracing::debug!(target: "network", %error, "cannot read /proc/net/route");
            Vec::new()
        }
    }
}

/// Columns: Iface Destination Gateway Flags RefCnt Use Metric Mask …; addresses are hexadecimal in network order as
/// the host's integer shows them.
fn parse(table: &str, ours: impl Fn(&str) -> bool) -> Vec<Ipv4Net> {
    let mut routes = Vec::new();
    for line in table.lines().skip(1) {
        let mut columns = line.split_ascii_whitespace();
        let (Some(link), Some(destination)) = (columns.next(), columns.next()) else { continue };
        let Some(mask) = columns.nth(5) else { continue };
        let (Some(destination), Some(mask)) = (address(destination), address(mask)) else { continue };
        if !ours(link) {
            // Routes have contiguous masks: the number of ones is the prefix.
            routes.push(Ipv4Net::of(destination, u8::try_from(mask.to_bits().count_ones()).unwrap_or(32)));
        }
    }
    routes
}

fn address(hex: &str) -> Option<Ipv4Addr> {
    u32::from_str_radix(hex, 16).ok().map(|bits| Ipv4Addr::from(bits.to_ne_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernel_s_table_is_read() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            outcall0\t0000C80A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            broken\n";
        let routes: Vec<String> = parse(table, |link| link == "outcall0").iter().map(ToString::to_string).collect();
        assert_eq!(routes, ["0.0.0.0/0", "172.17.0.0/16"]);
    }
}
