// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {ReentrancyGuard} from "@openzeppelin/contracts/utils/ReentrancyGuard.sol";

/// Holds an AI team's money for one job, and pays by the unique records that attestors sign for.
///
/// Nobody owns this contract: no pause, no upgrade, no list that somebody may edit. What a settlement needs (price, cap,
/// deadline, payees, attestors, threshold) is fixed in the deposit; the hospital's node refuses a deposit whose terms are
/// not those it expects. Money leaves only by `withdraw`, from each account's own credit.
///
/// For each escrow, always:  deposited = 70/20/5/5 credits + rest credited to the payer   (after settle)
///                           deposited = credited to the payer                            (after refund)
contract RaphaVault is EIP712, ReentrancyGuard {
    using SafeERC20 for IERC20;

    enum Status { None, Open, Settled, Refunded }

    struct Terms {
        bytes32 node; // who may run the job
        bytes32 owner; // whose job may spend it: a deposit's id is public, so the id alone must not be enough
        address token;
        uint96 price; // smallest units of the token, for one unique record
        uint32 maxRecords;
        uint64 deadline; // settle up to and at this second, refund after it
        uint8 threshold; // how many of `attestors` must sign
        address[4] payees; // hospital, node owner, onboarder, protocol
        address[] attestors;
    }

    struct Escrow {
        address payer;
        Status status;
        uint32 records; // settled for
        bytes32 job;
        bytes32 receipt; // the anchored digest
        Terms terms;
    }

    uint256 public constant MAX_LOCK = 180 days;
    uint256 public constant MAX_ATTESTORS = 16;
    bytes32 public constant SETTLEMENT_TYPEHASH = keccak256(
        "Settlement(bytes32 escrow,bytes32 job,bytes32 node,uint256 records,uint256 amount,bytes32 receipt,uint256 expiry)"
    );

    mapping(bytes32 escrow => Escrow) private _escrows;
    mapping(address token => mapping(address account => uint256)) public credit;
    /// What all accounts and open escrows together may claim of a token: never more than the vault's balance of it.
    mapping(address token => uint256) public owed;

    event Deposited(bytes32 indexed escrow, bytes32 indexed node, address indexed payer, address token, uint256 amount);
    event Settled(
        bytes32 indexed escrow, bytes32 indexed job, bytes32 indexed receipt, uint256 records, uint256 amount, uint256 rest
    );
    event Refunded(bytes32 indexed escrow, address indexed payer, uint256 amount);
    event Credited(bytes32 indexed escrow, address indexed account, uint256 amount);
    event Withdrawn(address indexed token, address indexed account, uint256 amount);

    error EscrowExists();
    error EscrowUnknown();
    error AlreadySettled();
    error AlreadyRefunded();
    error BadTerms();
    error BadRecords();
    error BadReceipt();
    error NotYet();
    error TooLate();
    error SignatureExpired();
    error SignatureLength();
    error SignersUnordered();
    error NotAttestor();
    error BelowThreshold();
    error BalanceDelta();
    error NoCredit();

    constructor() EIP712("RaphaVault", "1") {}

    /// The id of the deposit that `sender` makes with `nonce`: known before it is sent, so a job can name it.
    function escrowId(address sender, bytes32 nonce) public view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(this), sender, nonce));
    }

    function escrowOf(bytes32 escrow) external view returns (Escrow memory) {
        return _escrows[escrow];
    }

    /// Takes price * maxRecords from the sender. The same nonce again reverts, so a repeated deposit never pays twice.
    function deposit(bytes32 nonce, Terms calldata terms) external nonReentrant returns (bytes32 escrow) {
        escrow = escrowId(msg.sender, nonce);
        if (_escrows[escrow].status != Status.None) revert EscrowExists();
        _checkTerms(terms);
        uint256 amount = uint256(terms.price) * terms.maxRecords;
        Escrow storage made = _escrows[escrow];
        made.payer = msg.sender;
        made.status = Status.Open;
        made.terms = terms;
        owed[terms.token] += amount;
        IERC20 token = IERC20(terms.token);
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        if (token.balanceOf(address(this)) != before + amount) revert BalanceDelta();
        emit Deposited(escrow, terms.node, msg.sender, terms.token, amount);
    }

    /// Credits payees by `records`, the rest to the payer, and anchors `receipt`. Anyone may send it; the sender gains nothing.
    /// `signatures`: 65 bytes each (r, s, v; low s), in ascending order of their signers' addresses.
    function settle(
        bytes32 escrow,
        bytes32 job,
        uint256 records,
        bytes32 receipt,
        uint256 expiry,
        bytes[] calldata signatures
    ) external nonReentrant {
        Escrow storage made = _open(escrow);
        if (block.timestamp > made.terms.deadline) revert TooLate();
        if (records == 0 || records > made.terms.maxRecords) revert BadRecords();
        if (receipt == 0 || job == 0) revert BadReceipt();
        if (block.timestamp > expiry) revert SignatureExpired();
        uint256 amount = records * made.terms.price;
        _checkSignatures(made.terms, settlementDigest(escrow, job, records, receipt, expiry), signatures);

        made.status = Status.Settled;
        made.records = uint32(records);
        made.job = job;
        made.receipt = receipt;
        uint256[4] memory parts = split(uint128(amount));
        for (uint256 i = 0; i < 4; i++) {
            _credit(escrow, made.terms.token, made.terms.payees[i], parts[i]);
        }
        uint256 rest = uint256(made.terms.price) * made.terms.maxRecords - amount;
        _credit(escrow, made.terms.token, made.payer, rest);
        emit Settled(escrow, job, receipt, records, amount, rest);
    }

    /// After the deadline anyone may send the whole deposit back to its payer's credit.
    function refund(bytes32 escrow) external nonReentrant {
        Escrow storage made = _open(escrow);
        if (block.timestamp <= made.terms.deadline) revert NotYet();
        made.status = Status.Refunded;
        uint256 amount = uint256(made.terms.price) * made.terms.maxRecords;
        _credit(escrow, made.terms.token, made.payer, amount);
        emit Refunded(escrow, made.payer, amount);
    }

    /// Pays the sender's whole credit of `token` to the sender. One account that a token blocks stops no other.
    function withdraw(address token) external nonReentrant returns (uint256 amount) {
        amount = credit[token][msg.sender];
        if (amount == 0) revert NoCredit();
        credit[token][msg.sender] = 0;
        owed[token] -= amount;
        uint256 before = IERC20(token).balanceOf(address(this));
        IERC20(token).safeTransfer(msg.sender, amount);
        if (IERC20(token).balanceOf(address(this)) + amount != before) revert BalanceDelta();
        emit Withdrawn(token, msg.sender, amount);
    }

    /// 70/20/5/5 per cent of `amount`, rounded down, the remainder to the hospital: the parts add up to `amount`.
    function split(uint128 amount) public pure returns (uint256[4] memory parts) {
        parts[1] = uint256(amount) * 20 / 100;
        parts[2] = uint256(amount) * 5 / 100;
        parts[3] = parts[2];
        parts[0] = amount - parts[1] - parts[2] - parts[3];
    }

    /// The EIP-712 digest that attestors sign. It binds the node and the amount that the deposit's own terms give.
    function settlementDigest(bytes32 escrow, bytes32 job, uint256 records, bytes32 receipt, uint256 expiry)
        public
        view
        returns (bytes32)
    {
        Terms storage terms = _escrows[escrow].terms;
        uint256 amount = records * terms.price;
        return _hashTypedDataV4(
            keccak256(abi.encode(SETTLEMENT_TYPEHASH, escrow, job, terms.node, records, amount, receipt, expiry))
        );
    }

    function _open(bytes32 escrow) private view returns (Escrow storage made) {
        made = _escrows[escrow];
        if (made.status == Status.None) revert EscrowUnknown();
        if (made.status == Status.Settled) revert AlreadySettled();
        if (made.status == Status.Refunded) revert AlreadyRefunded();
    }

    function _credit(bytes32 escrow, address token, address account, uint256 amount) private {
        if (amount == 0) return;
        credit[token][account] += amount;
        emit Credited(escrow, account, amount);
    }

    function _checkTerms(Terms calldata terms) private view {
        if (terms.node == 0 || terms.owner == 0 || terms.token == address(0)) revert BadTerms();
        if (terms.price == 0 || terms.maxRecords == 0) revert BadTerms();
        if (terms.deadline <= block.timestamp || terms.deadline > block.timestamp + MAX_LOCK) revert BadTerms();
        for (uint256 i = 0; i < 4; i++) {
            if (terms.payees[i] == address(0) || terms.payees[i] == address(this)) revert BadTerms();
        }
        uint256 count = terms.attestors.length;
        if (count > MAX_ATTESTORS || terms.threshold == 0 || terms.threshold > count) revert BadTerms();
        address last = address(0);
        for (uint256 i = 0; i < count; i++) {
            if (terms.attestors[i] <= last) revert BadTerms(); // ascending: distinct and not zero
            last = terms.attestors[i];
        }
    }

    function _checkSignatures(Terms storage terms, bytes32 digest, bytes[] calldata signatures) private view {
        if (signatures.length < terms.threshold || signatures.length > terms.attestors.length) revert BelowThreshold();
        address last = address(0);
        for (uint256 i = 0; i < signatures.length; i++) {
            if (signatures[i].length != 65) revert SignatureLength();
            address signer = ECDSA.recover(digest, signatures[i]); // refuses high s and the zero address
            if (signer <= last) revert SignersUnordered();
            if (!_isAttestor(terms, signer)) revert NotAttestor();
            last = signer;
        }
    }

    function _isAttestor(Terms storage terms, address signer) private view returns (bool) {
        for (uint256 i = 0; i < terms.attestors.length; i++) {
            if (terms.attestors[i] == signer) return true;
        }
        return false;
    }
}
